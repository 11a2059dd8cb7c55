//! Looks for the number at which something ends to hold.

/// The highest number for which something holds that holds for `first`, not for `beyond`, and changes once in between.
pub(crate) fn last_that(mut first: u64, mut beyond: u64, holds: impl Fn(u64) -> bool) -> u64 {
    while beyond - first > 1 {
        let middle = first + (beyond - first) / 2;
        if holds(middle) { first = middle } else { beyond = middle }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::last_that;

    #[test]
    fn the_last_is_found_wherever_it_is() {
        for last in 3..9 {
            assert_eq!(last_that(3, 9, |number| number <= last), last);
        }
        assert_eq!(last_that(0, u64::MAX, |number| number < u64::MAX), u64::MAX - 1, "no sum overflows");
        assert_eq!(last_that(7, 8, |_| unreachable!("nothing lies in between")), 7);
    }
}
