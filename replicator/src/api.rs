//! Clients of the Kubernetes API, and how single objects are watched.

use backon::ExponentialBuilder;
use futures::StreamExt;
use kube::runtime::watcher::ExponentialBackoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;
use tokio::sync::watch;

/// Longer than a healthy API server needs by far, shorter than anybody waits for a failover.
pub const REQUEST_WITHIN: Duration = Duration::from_secs(4);
/// A watch that died silently is noticed after this and five seconds.
const WATCH_SECONDS: u32 = 25;
/// Between two tries of a watch; up to the same again is added by chance.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Two ways to the same API.
#[derive(Clone)]
pub struct Clients {
    /// Sends each request once and gives up soon: for everything that a decision waits for.
    pub fencing: Client,
    /// For watches: long answers.
    pub watching: Client,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[error("configure the Kubernetes client: {0}")]
pub struct ClientError(String);

impl Clients {
    /// From the pod's own account, or a kubeconfig outside a cluster.
    pub async fn infer() -> Result<Self, ClientError> {
        let failed = |error: String| ClientError(error);
        let mut config = Config::infer().await.map_err(|error| failed(error.to_string()))?;
        config.default_retry = false;
        let watching = Client::try_from(config.clone()).map_err(|error| failed(error.to_string()))?;
        // kube would send a refused write again by itself, up to fifteen times: such a write could land long after the
        // member has decided something else.
        config.connect_timeout = Some(Duration::from_secs(2));
        config.read_timeout = Some(Duration::from_secs(3));
        config.write_timeout = Some(Duration::from_secs(3));
        config.reset_reader_on_write = true;
        let fencing = Client::try_from(config).map_err(|error| failed(error.to_string()))?;
        Ok(Self { fencing, watching })
    }
}

/// Waits for a request, but not for ever.
pub async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Failed> {
    match tokio::time::timeout(REQUEST_WITHIN, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) => Err(Failed { code: Some(status.code), message: status.message.clone() }),
        Ok(Err(error)) => Err(Failed { code: None, message: error.to_string() }),
        Err(_) => Err(Failed { code: None, message: "no answer in time".into() }),
    }
}

/// A request that did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failed {
    /// What the server said; `None`: nothing that reached us.
    pub code: Option<u16>,
    /// In words.
    pub message: String,
}

impl Failed {
    /// The server looked at the request and did not do it: not found, conflict, invalid, forbidden.
    pub fn certainly_not_done(&self) -> bool {
        // 408 and 429 may come from something in between; whatever begins with 5 may have been done.
        self.code.is_some_and(|code| (400..500).contains(&code) && code != 408 && code != 429)
    }
}

/// Follows one object for as long as somebody listens. Errors are logged and retried with a growing pause of this watch's own.
pub fn follow<K>(api: Api<K>, name: &str) -> watch::Receiver<Option<K>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (sender, receiver) = watch::channel(None);
    let settings = watcher::Config::default().fields(&format!("metadata.name={name}")).timeout(WATCH_SECONDS);
    // kube's own pauses grow to 30 s: a switchover asked for right after an outage of the API server would wait for that.
    let pauses = ExponentialBuilder::default().with_jitter().without_max_times();
    let pause: ExponentialBackoff = pauses.with_min_delay(PAUSE_MIN).with_max_delay(PAUSE_MAX).into();
    let name = name.to_owned();
    tokio::spawn(async move {
        let mut objects = watcher(api, settings).backoff(pause).applied_objects().boxed();
        while let Some(object) = objects.next().await {
            match object {
                Ok(object) => {
                    if sender.send(Some(object)).is_err() {
                        return;
                    }
                }
                Err(error) => tracing::warn!(%error, name, "watch"),
            }
        }
    });
    receiver
}
