//! Prints the three kinds into `crds/yaml`, or into the folder given as argument.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder =
        std::env::args().nth(1).map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("yaml"), PathBuf::from);
    std::fs::create_dir_all(&folder)?;
    for (name, text) in tandem_crds::yaml::files()? {
        std::fs::write(folder.join(name), text)?;
    }
    Ok(())
}
