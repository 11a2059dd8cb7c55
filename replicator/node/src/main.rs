//! The node plugin: opens `/dev/fuse`, mounts, hands descriptors to the replicator of that very pod.
fn main() {}
