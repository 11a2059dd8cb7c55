//! The sidecar: captures, journals, ships, applies, netcopies, fences itself.
//!
//! ```text
//! capture -> journal -> ship ==link==> journal -> apply -> ack ==link==> (journal may forget)
//! ```

// A test looks at the one case it is about.
#![cfg_attr(test, allow(clippy::wildcard_enum_match_arm))]

/// Whether the simulation wants this mistake made, to see that it would notice. Never in the product.
macro_rules! mistake {
    ($which:ident) => {{
        #[cfg(test)]
        let makes = crate::simulated::mistake(crate::simulated::Mistake::$which);
        #[cfg(not(test))]
        let makes = false;
        makes
    }};
}

pub mod serve;
pub mod settings;

pub mod api;
pub mod apply;
pub mod aside;
mod bisect;
pub mod boot;
pub mod capture;
pub mod chance;
pub mod checkpoint;
pub mod clock;
pub mod commit;
pub mod conductor;
pub mod crew;
pub mod disk;
pub mod doorkeeper;
pub mod handover;
pub mod health;
pub mod identity;
pub mod journal;
pub mod link;
pub mod manifest;
pub mod memory;
pub mod metrics;
pub mod netcopy;
pub mod op;
pub mod orders;
pub mod plain;
pub mod receive;
pub mod record;
pub mod redo;
pub mod report;
pub mod route;
pub mod ship;
mod space;
pub mod supervise;
pub mod telemetry;
pub mod volume;

#[cfg(test)]
mod simulated;
#[cfg(test)]
#[path = "../tests/simulation/mod.rs"]
mod simulation;
