//! Promises to users, tried on a real cluster.
//!
//! `cluster` builds, starts and breaks a real Kubernetes on this machine; everything above it only uses the doors that a user has.

#![allow(clippy::panic, clippy::unwrap_used)] // a test says what it expects by panicking

pub mod cluster;
pub mod faults;
pub mod images;
pub mod judge;
pub mod namespace;
pub mod pair;
pub mod shell;
pub mod workload;
