//! Which of the operator's replicas acts. Only to avoid double work: two that act at once do no harm, because what
//! matters is decided by compare-and-swap elsewhere. A lease is over when it was not renewed for its whole length *as seen by
//! our own clock*: other machines' clocks are not compared.

use crate::clock;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use std::time::{Duration, Instant};

const NAME: &str = "tandem-operator";
const LENGTH: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_secs(2);
const ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// Our candidacy.
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    seen: Option<(String, Instant)>,
}

impl Candidate {
    /// In this namespace, under this name.
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), name: name.to_string(), seen: None }
    }

    /// Waits until the lease is ours.
    pub async fn elected(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "the lease cannot be had"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Keeps the lease; returns when it is lost, or may be.
    pub async fn keep(&mut self) {
        let mut renewed = clock::monotonic();
        loop {
            tokio::time::sleep(RENEW).await;
            let began = clock::monotonic();
            match self.attempt().await {
                Ok(true) => renewed = began,
                Ok(false) => {
                    tracing::warn!("somebody else holds the lease");
                    return;
                }
                Err(error) => tracing::warn!(%error, "the lease was not renewed"),
            }
            if clock::monotonic().saturating_duration_since(renewed) + RENEW > LENGTH {
                return;
            }
        }
    }

    /// Gives the lease back, so that nobody need wait for its end.
    pub async fn release(&self) {
        let Ok(Ok(Some(mut lease))) = tokio::time::timeout(ANSWER_WITHIN, self.api.get_opt(NAME)).await else { return };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(self.name.as_str()) {
            return;
        }
        spec.holder_identity = Some(String::new());
        let written = tokio::time::timeout(ANSWER_WITHIN, self.api.replace(NAME, &PostParams::default(), &lease)).await;
        if !matches!(written, Ok(Ok(_))) {
            tracing::info!("the lease was not given back: it ends by itself");
        }
    }

    /// Takes or renews the lease, if that is possible now.
    async fn attempt(&mut self) -> Result<bool, String> {
        let words = |error: kube::Error| error.to_string();
        let late = |_| "no answer in time".to_string();
        let there = tokio::time::timeout(ANSWER_WITHIN, self.api.get_opt(NAME)).await.map_err(late)?.map_err(words)?;
        let mut lease = there.unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() },
            spec: None,
        });
        let version = lease.metadata.resource_version.clone();
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
        if !self.may_take(&holder, version.as_deref(), clock::monotonic()) {
            return Ok(false);
        }
        let before = lease.spec.take().unwrap_or_default();
        let changes = before.lease_transitions.unwrap_or_default() + i32::from(holder != self.name);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.name.clone()),
            lease_duration_seconds: i32::try_from(LENGTH.as_secs()).ok(),
            renew_time: Some(MicroTime(clock::now())),
            acquire_time: if holder == self.name { before.acquire_time } else { Some(MicroTime(clock::now())) },
            lease_transitions: Some(changes),
            ..before
        });
        let written = async {
            match version {
                None => self.api.create(&PostParams::default(), &lease).await,
                Some(_) => self.api.replace(NAME, &PostParams::default(), &lease).await,
            }
        };
        match tokio::time::timeout(ANSWER_WITHIN, written).await.map_err(late)? {
            Ok(_) => Ok(true),
            // Somebody else was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(words(error)),
        }
    }

    /// Ours, nobody's, or not renewed for its whole length since we first saw it like this.
    fn may_take(&mut self, holder: &str, version: Option<&str>, now: Instant) -> bool {
        let Some(version) = version else { return true };
        if holder.is_empty() || holder == self.name {
            return true;
        }
        match &self.seen {
            Some((seen, since)) if seen == version => now.saturating_duration_since(*since) > LENGTH,
            _ => {
                self.seen = Some((version.to_string(), now));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lease_is_taken_only_when_it_stood_still_for_its_whole_length() {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("nobody is asked"))
        });
        let mut candidate = Candidate::new(Client::new(service, "x"), "x", "me");
        let start = clock::monotonic();
        assert!(candidate.may_take("", Some("1"), start));
        assert!(candidate.may_take("me", Some("1"), start));
        assert!(candidate.may_take("you", None, start));
        assert!(!candidate.may_take("you", Some("1"), start));
        assert!(!candidate.may_take("you", Some("1"), start + LENGTH));
        assert!(!candidate.may_take("you", Some("2"), start + LENGTH * 2));
        assert!(candidate.may_take("you", Some("2"), start + LENGTH * 4));
    }
}
