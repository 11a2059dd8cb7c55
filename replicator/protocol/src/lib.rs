//! The failover protocol, pure: no IO, no clock, no async, no Kubernetes. The model, the simulation and the product run this code.

pub mod ack;
pub mod position;

pub use position::Position;
