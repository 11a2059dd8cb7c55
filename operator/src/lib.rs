//! The operator: keeps pairs as their owners asked. It moves no data and decides nothing about safety; a pair goes on
//! without it. Modules in reading order:
//!
//! ```text
//! watch -> reconcile:  validate -> observe -> decide -> act -> status
//!                        pure      reads     pure     writes  one writer
//! ```

pub mod settings;
pub mod watch;

pub mod reconcile;

pub mod validate;

pub mod observe;

pub mod decide;

pub mod desired;

pub mod act;

pub mod status;

pub mod pair;

pub mod observed;

pub mod plan;

pub mod certificates;
pub mod clock;
pub mod context;
pub mod events;
pub mod health;
pub mod lease;
