//! What is wished for, from a file of this machine: for development, and for tests of two members without a cluster. In a
//! cluster the same comes from the member's object (`report.rs`).

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tandem_protocol::Settings;
use tandem_protocol::member::event::Order;
use tandem_protocol::record::Request;
use tokio::sync::watch;

use crate::conductor::Wishes;
use crate::settings::Member;

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What `wishes-<member>.json` holds; without the file the defaults are in force.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    /// Settings that differ from the defaults.
    settings: Option<Settings>,
    nomination: Option<(Request, u64)>,
    /// A copy of which not a byte moves for so long is given up.
    stall_timeout_milliseconds: Option<u64>,
    /// Tokens of orders to discard what the volume holds.
    discard: Vec<String>,
    /// Tokens of orders to compare everything with the master again.
    resync: Vec<String>,
    /// Tokens of orders to hold.
    hold: Vec<String>,
}

/// Follows the file.
pub fn from_folder(folder: &Path, member: Member) -> watch::Receiver<Wishes> {
    let path = folder.join(format!("wishes-{}.json", member.name()));
    let (sender, receiver) = watch::channel(Wishes::default());
    tokio::spawn(async move {
        let mut last = None;
        while !sender.is_closed() {
            let text = std::fs::read(&path).unwrap_or_default();
            if last.as_ref() != Some(&text) {
                match read(&path, &text) {
                    Ok(wishes) => {
                        sender.send_replace(wishes);
                    }
                    Err(error) => tracing::warn!(%error, "the file of wishes is not understood"),
                }
                last = Some(text);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    });
    receiver
}

fn read(path: &Path, text: &[u8]) -> Result<Wishes, serde_json::Error> {
    let written: Written = if text.is_empty() { Written::default() } else { serde_json::from_slice(text)? };
    tracing::info!(path = %path.display(), "wishes");
    let all = |tokens: Vec<String>, order| tokens.into_iter().map(move |token| (token, order));
    let orders = all(written.discard, Order::Discard)
        .chain(all(written.resync, Order::Resync))
        .chain(all(written.hold, Order::Hold(true)))
        .collect();
    Ok(Wishes {
        settings: Some(written.settings.unwrap_or_default()),
        nomination: written.nomination,
        orders,
        given_up: Vec::new(),
        testify: None,
        stall_timeout: written.stall_timeout_milliseconds.map(Duration::from_millis),
        generation: None,
    })
}
