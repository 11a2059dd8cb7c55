//! What runs inside the test pods: a small static program without Kubernetes in it.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        // Holds a pod's namespaces.
        ["pause"] => loop {
            std::thread::park();
        },
        ["serve", folder] => match tandem_tests::workload::serve(Path::new(folder)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("serve {folder}: {error}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("usage: workload pause | serve FOLDER");
            ExitCode::FAILURE
        }
    }
}
