//! File systems of other kinds than the machine's own, each in a file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of its own, mounted somewhere until this is dropped.
pub(crate) struct Disk {
    _image: tempfile::TempDir,
    place: PathBuf,
}

impl Disk {
    /// Mounts a new one: `kind` as in `mkfs.ext4`.
    pub(crate) fn mounted(kind: &str, mebibytes: u64, place: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        run(&format!("mkfs.{kind}"), &[Path::new("-q"), &image]);
        run("mount", &[Path::new("-o"), Path::new("loop"), &image, place]);
        Self { _image: folder, place: place.to_path_buf() }
    }

    /// Whatever would change it hangs until this is dropped.
    pub(crate) fn freeze(&self) -> Frozen<'_> {
        run("fsfreeze", &[Path::new("--freeze"), &self.place]);
        Frozen(self)
    }
}

/// A file system that stands still.
pub(crate) struct Frozen<'a>(&'a Disk);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        Command::new("fsfreeze").arg("--unfreeze").arg(&self.0.place).status().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever still uses it keeps it until he ends.
        Command::new("umount").arg("-l").arg(&self.place).status().unwrap();
    }
}

fn run(program: &str, words: &[&Path]) {
    let output = Command::new(program).args(words).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}
