//! The only room that draws random numbers: the names of claims and of journal segments, which must never be drawn twice.

use std::io::Read as _;

/// A number that nobody has drawn before.
pub fn number() -> u128 {
    #[cfg(test)]
    if let Some(number) = crate::simulated::chance() {
        return number;
    }
    let mut bytes = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes));
    if let Err(error) = read {
        // Without randomness two claims could not be told apart: then it is better not to run.
        tracing::error!(%error, "no randomness");
        std::process::abort();
    }
    u128::from_le_bytes(bytes)
}
