//! The failover protocol, pure: no IO, no clock, no async, no Kubernetes. The model, the simulation and the product run this code.
//!
//! ```text
//! words   position, identity        what a member and its volume are called
//! rules   record                    the one object that decides, and what may be written to it
//!         ack                       when an operation may be acknowledged
//!         handshake                 what two members that meet must do before one follows the other
//!         member                    the machine: step(event, now) -> effects
//! ```

pub mod ack;
pub mod handshake;
pub mod identity;
pub mod member;
pub mod position;
pub mod record;

pub use ack::{AckRule, Marks};
pub use handshake::Hello;
pub use identity::{Identity, MemberName};
pub use member::{Effect, Event, Member, Now, Settings};
pub use position::Position;
pub use record::Record;
