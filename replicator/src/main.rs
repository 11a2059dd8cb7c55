//! The sidecar's door.
fn main() {}
