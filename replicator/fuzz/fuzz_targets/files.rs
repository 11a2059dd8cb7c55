//! The small files and objects that a member reads about itself and its pair.
#![allow(unexpected_cfgs, reason = "cargo fuzz sets `fuzzing`")]
#![cfg_attr(any(fuzzing, feature = "engine"), no_main)]

#[cfg(any(fuzzing, feature = "engine"))]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tandem_fuzz::files::run(bytes));

#[cfg(not(any(fuzzing, feature = "engine")))]
fn main() {
    tandem_fuzz::play(tandem_fuzz::files::run);
}
