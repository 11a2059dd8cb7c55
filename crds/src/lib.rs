//! The three kinds of Tandem as types. Knows neither program.
//!
//! * [`v1alpha1::ReplicationPair`]: what a user wants; its status is the operator's account of it.
//! * [`v1alpha1::ReplicationMember`]: what one replicator is told (spec) and what it reports (status).
//! * [`v1alpha1::PairRecord`]: the one object that safety depends on; written by the members only, by compare-and-swap.
//!
//! `yaml/` holds the same as Kubernetes reads it, printed by `crdgen`; a test compares the two.

pub mod translation;
pub mod v1alpha1;
pub mod yaml;

/// The API group of all kinds and the prefix of all labels and annotations.
pub const GROUP: &str = "tandem.dev";
