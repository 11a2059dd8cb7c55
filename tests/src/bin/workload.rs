//! What runs inside the test pods: a small static program without Kubernetes in it.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        // Holds a pod's namespaces.
        Some("pause") => loop {
            std::thread::park();
        },
        _ => {
            eprintln!("usage: workload pause");
            ExitCode::FAILURE
        }
    }
}
