//! Fuzz targets for everything that decodes bytes of a disk, a wire or a kernel: what each one feeds and what must hold
//! afterwards. The engines are thin: `fuzz_targets` for libFuzzer (`cargo verify -- --only fuzz`, or `cargo +nightly fuzz
//! run fuzz_journal` where cargo-fuzz is installed), and `tests/seeds.rs`, which plays the seeds and mutations of them in
//! the ordinary tests.
//!
//! A target does not only ask for no panic: memory stays bounded by the input, what decodes encodes to the same again,
//! and nothing beside the pair's own folder changes. Inputs that carry checksums get them from the harness, so that the
//! engine does not have to guess them.

// A harness says what it expects by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(unexpected_cfgs, reason = "cargo fuzz sets `fuzzing`")]

// Linked also where nothing names it: instrumented crates count into it.
#[cfg(any(fuzzing, feature = "engine"))]
use libfuzzer_sys as _;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

pub mod files;
pub mod journal;
pub mod kernel;
pub mod link;
pub mod netcopy;
pub mod node;
pub mod operations;
pub mod volume;

mod draw;
mod place;

/// A target by name, the seeds it begins with.
pub struct Target {
    /// As its binary is called, without `fuzz_`.
    pub name: &'static str,
    /// Plays one input.
    pub run: fn(&[u8]),
    /// Inputs that reach deep.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "operations", run: operations::run, seeds: operations::seeds },
    Target { name: "volume", run: volume::run, seeds: volume::seeds },
    Target { name: "journal", run: journal::run, seeds: journal::seeds },
    Target { name: "link", run: link::run, seeds: link::seeds },
    Target { name: "netcopy", run: netcopy::run, seeds: netcopy::seeds },
    Target { name: "files", run: files::run, seeds: files::seeds },
    Target { name: "kernel", run: kernel::run, seeds: kernel::seeds },
    Target { name: "node", run: node::run, seeds: node::seeds },
];

/// Without an engine: plays the files that are named.
pub fn play(run: fn(&[u8])) {
    for path in std::env::args().skip(1) {
        run(&std::fs::read(&path).unwrap());
        println!("{path}: nothing found");
    }
}

/// The system's allocator, with a look at how much is taken.
struct Accounted;

thread_local! {
    // Of this thread: a journal prepares room on another one while a decoder is watched.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn taken(layout: Layout) {
    let live = LIVE.get().saturating_add_unsigned(layout.size());
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

#[global_allocator]
static ALLOCATOR: Accounted = Accounted;

#[allow(unsafe_code, reason = "an allocator is the one place where memory can be counted before it is taken")]
// SAFETY: everything is handed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Accounted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        taken(layout);
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get().saturating_sub_unsigned(layout.size()));
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(place, layout) }
    }
}

/// Does something, and fails if it ever took more memory than `bytes` beside what this thread had.
pub(crate) fn bounded<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    let taken = PEAK.get().saturating_sub(before);
    assert!(taken.cast_unsigned() <= bytes, "took {taken} bytes of memory, {bytes} are allowed");
    result
}
