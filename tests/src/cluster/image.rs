//! Container images without an engine: one layer, in an OCI layout inside a tar, as containerd imports it.

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What goes into the image.
pub struct Image {
    name: String,
    entrypoint: Vec<String>,
    layer: tar::Builder<Vec<u8>>,
    made: BTreeSet<String>,
}

impl Image {
    /// An empty image with a writable /tmp; `name` as a pod names it.
    pub fn new(name: &str, entrypoint: &[&str]) -> Result<Image> {
        let entrypoint = entrypoint.iter().map(ToString::to_string).collect();
        let mut image =
            Image { name: name.to_string(), entrypoint, layer: tar::Builder::new(Vec::new()), made: BTreeSet::new() };
        image.folder("/tmp", 0o1777, 0)?;
        image.folder("/etc", 0o755, 0)?;
        Ok(image)
    }

    pub fn folder(&mut self, path: &str, mode: u32, owner: u64) -> Result<()> {
        if path.is_empty() || path == "/" || !self.made.insert(path.to_string()) {
            return Ok(());
        }
        self.parent(path)?;
        let mut header = header(tar::EntryType::Directory, mode, 0);
        header.set_uid(owner);
        header.set_gid(owner);
        self.layer
            .append_data(&mut header, path.trim_start_matches('/'), std::io::empty())
            .with_context(|| format!("add {path}"))
    }

    /// A file of this machine, its links followed.
    pub fn file(&mut self, source: &Path, path: &str) -> Result<()> {
        let data = fs::read(source).with_context(|| format!("read {}", source.display()))?;
        let mode = fs::metadata(source).with_context(|| format!("look at {}", source.display()))?.mode() & 0o777;
        self.content(path, &data, mode)
    }

    pub fn content(&mut self, path: &str, data: &[u8], mode: u32) -> Result<()> {
        if !self.made.insert(path.to_string()) {
            return Ok(());
        }
        self.parent(path)?;
        let mut header = header(tar::EntryType::Regular, mode, data.len() as u64);
        self.layer.append_data(&mut header, path.trim_start_matches('/'), data).with_context(|| format!("add {path}"))
    }

    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        if !self.made.insert(path.to_string()) {
            return Ok(());
        }
        self.parent(path)?;
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        self.layer.append_link(&mut header, path.trim_start_matches('/'), target).with_context(|| format!("add {path}"))
    }

    /// A folder of this machine with everything below it.
    pub fn tree(&mut self, source: &Path, path: &str) -> Result<()> {
        self.folder(path, 0o755, 0)?;
        for entry in fs::read_dir(source).with_context(|| format!("list {}", source.display()))? {
            let entry = entry.context("list a folder")?;
            let inner = format!("{path}/{}", entry.file_name().to_string_lossy());
            let kind = fs::metadata(entry.path());
            match kind {
                Ok(kind) if kind.is_dir() => self.tree(&entry.path(), &inner)?,
                Ok(kind) if kind.is_file() => self.file(&entry.path(), &inner)?,
                // A link that leads nowhere, or a socket: nothing that a program could read.
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Writes the image; the file's name is made of what is in it, so an unchanged image is recognised by its path.
    pub fn write(self, out: &Path) -> Result<()> {
        let layer = self.layer.into_inner().context("finish the layer")?;
        let layer_digest = digest(&layer);
        let config = json!({"architecture": "amd64", "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Env": ["PATH=/bin:/usr/bin:/usr/lib/postgresql/15/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]}})
        .to_string();
        let kind = "application/vnd.oci.image";
        let manifest = json!({"schemaVersion": 2, "mediaType": format!("{kind}.manifest.v1+json"),
            "config": {"mediaType": format!("{kind}.config.v1+json"), "digest": digest(config.as_bytes()), "size": config.len()},
            "layers": [{"mediaType": format!("{kind}.layer.v1.tar"), "digest": layer_digest, "size": layer.len()}]})
        .to_string();
        let index = json!({"schemaVersion": 2, "mediaType": format!("{kind}.index.v1+json"),
            "manifests": [{"mediaType": format!("{kind}.manifest.v1+json"), "digest": digest(manifest.as_bytes()),
                "size": manifest.len(), "annotations": {"io.containerd.image.name": self.name}}]})
        .to_string();
        let file = File::create(out).with_context(|| format!("create {}", out.display()))?;
        let mut archive = tar::Builder::new(BufWriter::new(file));
        let blob = |data: &[u8]| format!("blobs/sha256/{}", digest(data).trim_start_matches("sha256:"));
        let parts: [(String, &[u8]); 5] = [
            ("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#),
            ("index.json".into(), index.as_bytes()),
            (blob(&layer), &layer),
            (blob(config.as_bytes()), config.as_bytes()),
            (blob(manifest.as_bytes()), manifest.as_bytes()),
        ];
        for (path, data) in parts {
            let mut header = header(tar::EntryType::Regular, 0o644, data.len() as u64);
            archive.append_data(&mut header, &path, data).with_context(|| format!("add {path}"))?;
        }
        archive.into_inner().context("finish the image")?.flush().context("write the image")
    }

    fn parent(&mut self, path: &str) -> Result<()> {
        let above = path.rsplit_once('/').map_or("", |(above, _)| above).to_string();
        self.folder(&above, 0o755, 0)
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn digest(data: &[u8]) -> String {
    let hash: String = Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hash}")
}
