//! Faults that every pair of the cluster feels.

pub(crate) mod control;
pub(crate) mod nodes;
