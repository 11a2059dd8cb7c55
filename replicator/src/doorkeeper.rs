//! The gate: an ordinary init container that ends when this pod's member serves as master, so that no application process
//! exists on a replicant. It mounts nothing of the data and knows nothing but one address.

use crate::settings::GateSettings;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};

const ASK_EVERY: Duration = Duration::from_millis(100);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// How the wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// The application may start.
    Open,
    /// The pod is ending.
    Told,
}

/// Asks until the gate is open or the pod ends. A sidecar that does not answer is starting, or starting again.
pub async fn wait(settings: &GateSettings) -> io::Result<Passed> {
    // Pid 1 of a container has no default actions: without this the pod would wait for its whole grace period.
    let mut told = signal(SignalKind::terminate())?;
    let mut last = String::new();
    loop {
        let answer = match tokio::time::timeout(ANSWER_WITHIN, ask(settings)).await {
            Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200 ") => return Ok(Passed::Open),
            Ok(Ok(answer)) => answer.lines().last().unwrap_or_default().to_owned(),
            Ok(Err(error)) => format!("the sidecar does not answer: {error}"),
            Err(_) => "the sidecar does not answer in time".to_owned(),
        };
        if answer != last {
            tracing::info!(answer, "waiting");
            last = answer;
        }
        tokio::select! {
            () = tokio::time::sleep(ASK_EVERY) => {}
            _ = told.recv() => return Ok(Passed::Told),
        }
    }
}

async fn ask(settings: &GateSettings) -> io::Result<String> {
    let mut stream = TcpStream::connect(settings.sidecar).await?;
    stream.write_all(b"GET /gate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{self, Shown};
    use crate::metrics::Metrics;
    use std::sync::Arc;

    #[tokio::test]
    async fn it_ends_when_the_member_serves() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let settings = GateSettings { sidecar: free };
        let shown = Arc::new(Shown::default());
        let waiting = tokio::spawn(async move { wait(&settings).await });
        health::serve(free, Arc::clone(&shown), Arc::new(Metrics::default())).await.unwrap();
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        shown.update(|snapshot| snapshot.gate = true);
        assert_eq!(waiting.await.unwrap().unwrap(), Passed::Open);
    }
}
