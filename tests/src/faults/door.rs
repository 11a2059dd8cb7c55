//! The API server without a program started for each look: many pairs are watched at once, several times a second.

use crate::cluster::Cluster;
use anyhow::{Context, Result};
use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use tokio::runtime::Runtime;

/// A client for threads. Every call ends within seconds, whatever the API server does.
pub struct Door {
    runtime: Runtime,
    client: kube::Client,
}

const LIMIT: Duration = Duration::from_secs(5);

impl Door {
    /// The caller is in the cluster's network already: the client's threads inherit it.
    pub fn open(cluster: &Cluster) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).context("read the kubeconfig")?;
        let client = runtime.block_on(async {
            let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            anyhow::Ok(kube::Client::try_from(config)?)
        })?;
        Ok(Self { runtime, client })
    }

    pub fn get(&self, path: &str) -> Result<Value> {
        self.call(Request::get(path), Vec::new()).with_context(|| format!("get {path}"))
    }

    /// Lays these fields over an object.
    pub fn merge(&self, path: &str, fields: &Value) -> Result<()> {
        let request = Request::patch(path).header("content-type", "application/merge-patch+json");
        self.call(request, fields.to_string().into_bytes()).map(drop).with_context(|| format!("change {path}"))
    }

    pub fn delete(&self, path: &str, grace_seconds: Option<u32>) -> Result<()> {
        let query = grace_seconds.map_or_else(String::new, |grace| format!("?gracePeriodSeconds={grace}"));
        self.call(Request::delete(format!("{path}{query}")), Vec::new())
            .map(drop)
            .with_context(|| format!("delete {path}"))
    }

    fn call(&self, request: http::request::Builder, body: Vec<u8>) -> Result<Value> {
        let request = request.body(body)?;
        let answer = async { tokio::time::timeout(LIMIT, self.client.request::<Value>(request)).await };
        Ok(self.runtime.block_on(answer).context("the API server does not answer")??)
    }
}

/// What a member says of itself, asked of its own process: no report in between that may be old.
pub fn ask_member(address: &str) -> Result<Value> {
    let limit = Duration::from_millis(500);
    let address: SocketAddr = format!("{address}:7471").parse().context("a pod's address")?;
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET /member HTTP/1.1\r\nHost: member\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (_, body) = text.split_once("\r\n\r\n").context("no answer of HTTP")?;
    serde_json::from_str(body).context("a member's words")
}
