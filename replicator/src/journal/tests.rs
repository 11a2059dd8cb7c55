//! Crash states of the journal.
