//! Every fuzz target on its seeds and on a few thousand changes of them: what the engine does for longer, without it.

use tandem_fuzz::TARGETS;

/// A small generator of numbers, the same everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound.max(1)
    }
}

#[test]
fn no_seed_and_no_small_change_of_one_breaks_what_must_hold() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{}", target.name);
        for seed in &seeds {
            (target.run)(seed);
        }
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
        for _ in 0..400 {
            let mut input = seeds[dice.below(seeds.len())].clone();
            for _ in 0..=dice.below(4) {
                let at = dice.below(input.len());
                match dice.below(4) {
                    0 if !input.is_empty() => input[at] = dice.below(256) as u8,
                    1 if !input.is_empty() => drop(input.remove(at)),
                    2 => input.insert(at, dice.below(256) as u8),
                    _ => input.truncate(at),
                }
            }
            // Said beforehand: a panic names the input by it.
            println!("{} {input:02x?}", target.name);
            (target.run)(&input);
        }
    }
}
