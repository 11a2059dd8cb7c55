//! Tells one life of this node from the next: what was not flushed may be gone after each change. The kernel's boot id says
//! it where power loss means a new kernel. A machine that plays several nodes, or a pod that is moved to another sandbox
//! with the same kernel, loses its memory without a new boot id; so a random word in a folder of memory (an emptyDir of
//! medium Memory), which is gone exactly when that memory is, belongs to the answer.

use std::io;
use std::path::Path;

use crate::disk;

const KERNEL: &str = "/proc/sys/kernel/random/boot_id";
/// A fresh random word at each reading.
const RANDOM: &str = "/proc/sys/kernel/random/uuid";

/// Which life of this node this is. `run`: the folder of memory, if there is one.
pub fn node_boot(run: &Path) -> io::Result<String> {
    let kernel = word(Path::new(KERNEL))?;
    if !run.is_dir() {
        return Ok(kernel);
    }
    let mark = run.join("boot");
    let known = match word(&mark) {
        Ok(known) => known,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    if !known.is_empty() {
        return Ok(format!("{kernel}/{known}"));
    }
    let fresh = word(Path::new(RANDOM))?;
    // Whole or not at all: half a word would be another life at the next start of the same one.
    disk::write_durably(&mark, fresh.as_bytes())?;
    Ok(format!("{kernel}/{fresh}"))
}

fn word(path: &Path) -> io::Result<String> {
    Ok(std::fs::read_to_string(path)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_lasts_as_long_as_its_memory() {
        let run = tempfile::tempdir().unwrap();
        let first = node_boot(run.path()).unwrap();
        assert_eq!(node_boot(run.path()).unwrap(), first, "a restart of the process is the same life");
        std::fs::remove_file(run.path().join("boot")).unwrap();
        assert_ne!(node_boot(run.path()).unwrap(), first, "the memory is gone, the kernel is the same");
        let without = node_boot(&run.path().join("nowhere")).unwrap();
        assert!(first.starts_with(&without) && !without.contains('/'), "{first} {without}");
    }
}
