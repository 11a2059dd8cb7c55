//! Faults of one pair.

pub(crate) mod copies;
pub(crate) mod damage;
pub(crate) mod network;
pub(crate) mod people;
pub(crate) mod processes;
pub(crate) mod stops;
