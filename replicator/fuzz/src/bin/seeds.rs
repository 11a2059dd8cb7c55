//! Writes the seeds of every target into folders that the engine begins with: `seeds FOLDER` makes `FOLDER/<target>/`.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let home = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("replicator/fuzz/corpus"), PathBuf::from);
    for target in tandem_fuzz::TARGETS {
        let folder = home.join(format!("fuzz_{}", target.name));
        std::fs::create_dir_all(&folder)?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}
