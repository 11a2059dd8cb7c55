//! What the owner chose, as it is in force: from the member's object, or, while that cannot be read, as it was last.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tandem_protocol::Settings;
use tandem_protocol::member::event::Order;
use tokio::sync::watch;

use super::{ConductorError, Wishes, recall};
use crate::memory::Memory;

/// Where it is remembered.
pub(super) const MEMORY: &str = "settings";
/// An API server that is there answers within this time; a daemon that starts again while it is away must not wait for it,
/// because the application waits for the daemon.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// In force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Chosen {
    pub(super) settings: Settings,
    pub(super) stall_timeout: Option<Duration>,
    /// An order to hold stands.
    pub(super) held: bool,
}

impl Chosen {
    /// `None`: the object was not read.
    pub(super) fn of(wishes: &Wishes) -> Option<Self> {
        Some(Self {
            settings: wishes.settings.clone()?,
            stall_timeout: wishes.stall_timeout,
            held: wishes.orders.iter().any(|(_, order)| matches!(order, Order::Hold(_))),
        })
    }
}

/// Nothing is decided before it is known what the owner chose: waits for the object, after `patience` goes by what was
/// remembered, and where nothing is, waits on.
pub(super) async fn first(
    wishes: &mut watch::Receiver<Wishes>,
    memory: &Memory,
    patience: Duration,
) -> Result<Chosen, ConductorError> {
    let closed = |_| ConductorError::Io { doing: "wait for settings", source: std::io::ErrorKind::BrokenPipe.into() };
    let known = |wishes: &Wishes| wishes.settings.is_some();
    if tokio::time::timeout(patience, wishes.wait_for(known)).await.is_err() {
        if let Some(chosen) = recall::<Chosen>(memory, MEMORY) {
            tracing::warn!(?patience, "the member's object cannot be read: the settings in force last are in force");
            return Ok(chosen);
        }
        tracing::warn!("the member's object cannot be read, and no settings are remembered: waiting for it");
    }
    let wishes = wishes.wait_for(known).await.map_err(closed)?;
    Ok(Chosen::of(&wishes).unwrap_or_else(|| Chosen {
        settings: Settings::default(),
        stall_timeout: None,
        held: false,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    fn wished(hold: u64) -> Wishes {
        let settings = Settings { hold, ..Settings::default() };
        Wishes { settings: Some(settings), orders: vec![("t".into(), Order::Hold(true))], ..Wishes::default() }
    }

    #[tokio::test]
    async fn without_the_object_what_was_in_force_last_is_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::new(folder.path());
        let (sender, mut receiver) = watch::channel(Wishes::default());
        memory.keep(MEMORY, &Chosen::of(&wished(17)).unwrap()).unwrap();
        let chosen = first(&mut receiver, &memory, SHORT).await.unwrap();
        assert_eq!((chosen.settings.hold, chosen.held), (17, true));
        sender.send_replace(wished(18));
        assert_eq!(
            first(&mut receiver, &memory, SHORT).await.unwrap().settings.hold,
            18,
            "the object is believed first"
        );
    }

    #[tokio::test]
    async fn without_either_it_waits() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("settings.json"), "{").unwrap();
        let memory = Memory::new(folder.path());
        let (sender, mut receiver) = watch::channel(Wishes::default());
        let waiting = tokio::spawn(async move { first(&mut receiver, &memory, SHORT).await });
        tokio::time::sleep(SHORT * 4).await;
        assert!(!waiting.is_finished(), "what is damaged is not guessed at");
        sender.send_replace(wished(19));
        assert_eq!(waiting.await.unwrap().unwrap().settings.hold, 19);
    }
}
