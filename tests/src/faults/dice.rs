//! Chance that can be played again: everything follows from the seed and from what is asked, never from the time of day or
//! from how fast the machine is.

/// A stream of numbers.
#[derive(Clone, Debug)]
pub struct Dice {
    state: u64,
}

impl Dice {
    /// The stream of this seed for this place: a pair and the number of its fault, for example. Places do not disturb each
    /// other, so that the fault a pair meets as its seventh is the same however many the others had by then.
    pub fn of(seed: u64, place: &str, number: u64) -> Self {
        let mut state = seed ^ 0x7461_6e64_656d_0000;
        for byte in place.bytes() {
            state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let mut dice = Self { state: state ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15) };
        dice.next();
        dice
    }

    /// splitmix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From `low` to `high`, both possible.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    /// Yes in so many of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.between(1, 100) <= percent
    }

    /// One of these.
    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let last = all.len().saturating_sub(1) as u64;
        &all[usize::try_from(self.between(0, last)).unwrap_or(0)]
    }

    /// One of these, each as often as its weight says.
    pub fn weighted<'a, T>(&mut self, all: &'a [T], weight: impl Fn(&T) -> u64) -> &'a T {
        let mut left = self.between(1, all.iter().map(&weight).sum::<u64>().max(1));
        for one in all {
            let own = weight(one);
            if left <= own {
                return one;
            }
            left -= own;
        }
        &all[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_says_the_same_again_and_places_differ() {
        let draw = |seed, place, number| {
            let mut dice = Dice::of(seed, place, number);
            (0..8).map(|_| dice.between(0, 999)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, "orders", 3), draw(1, "orders", 3));
        for other in [draw(2, "orders", 3), draw(1, "shop", 3), draw(1, "orders", 4)] {
            assert_ne!(draw(1, "orders", 3), other);
        }
    }

    #[test]
    fn weights_are_kept() {
        let (mut dice, mut heavy) = (Dice::of(7, "", 0), 0);
        for _ in 0..1000 {
            heavy += u64::from(*dice.weighted(&[1_u64, 9], |weight| *weight) == 9);
        }
        assert!((850..950).contains(&heavy), "{heavy}");
    }
}
