//! Where a member's history stands. The ladder of positions has its one home here; metrics, status and logs use its words:
//! `trimmed <= applied <= committed <= durable <= received <= shipped <= journaled <= captured`.

use serde::{Deserialize, Serialize};

/// A point in the pair's history. Equal positions mean equal content: `chain` covers everything up to and including `seq`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Epoch of the operation at `seq` (0 before the first operation).
    pub epoch: u64,
    /// Sequence number, counted from 1 over all epochs without holes; 0 = nothing yet.
    pub seq: u64,
    /// Hash over the whole history up to here.
    pub chain: u64,
}
