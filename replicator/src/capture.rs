//! Serves the application's file system.

pub mod transport;
pub mod wire;
