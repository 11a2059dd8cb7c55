//! Requests of the kernel.
#![allow(unexpected_cfgs, reason = "cargo fuzz sets `fuzzing`")]
#![cfg_attr(any(fuzzing, feature = "engine"), no_main)]

#[cfg(any(fuzzing, feature = "engine"))]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tandem_fuzz::kernel::run(bytes));

#[cfg(not(any(fuzzing, feature = "engine")))]
fn main() {
    tandem_fuzz::play(tandem_fuzz::kernel::run);
}
