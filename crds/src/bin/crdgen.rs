//! Prints the three kinds as YAML, for people (`crds/yaml`) and for the chart. With `--check` it writes nothing and fails
//! when what lies there is not what it would print.

use std::path::Path;
use std::process::ExitCode;

/// Where the YAML lies, from the workspace's root.
const PLACES: [&str; 2] = ["crds/yaml", "charts/tandem/crds-yaml"];

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let check = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--check") => true,
        Some(other) => return Err(format!("`{other}` is not understood: nothing, or --check").into()),
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the workspace is above this crate")?;
    let mut stale = false;
    for place in PLACES {
        let folder = root.join(place);
        std::fs::create_dir_all(&folder)?;
        for (name, text) in tandem_crds::yaml::files()? {
            let path = folder.join(name);
            if !check {
                std::fs::write(path, text)?;
            } else if std::fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
                eprintln!(
                    "{place}/{name} is not current: cargo run -p tandem-crds --bin crdgen",
                    name = path.file_name().unwrap_or_default().display()
                );
                stale = true;
            }
        }
    }
    Ok(if stale { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
