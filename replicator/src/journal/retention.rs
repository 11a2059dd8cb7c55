//! How much of the journal must stay. Pure.

/// What is known when retention is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The volume itself holds everything up to here.
    pub checkpoint: u64,
    /// Up to here the peer durably holds the same: as it said to a master, or as a master told whoever follows it.
    pub shared: u64,
    /// Bytes the journal takes.
    pub bytes: u64,
    /// `queue.diskLimit` in bytes.
    pub bytes_max: u64,
}

/// What may be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Records below this one may go.
    pub trim_below: u64,
    /// The peer will not find what it needs: it has to be compared or copied.
    pub peer_left_behind: bool,
}

/// Keeps what the checkpoint does not cover, always; keeps what the peer lacks, up to the limit.
pub fn retain(known: Known) -> Verdict {
    let own = known.checkpoint + 1;
    if known.shared >= known.checkpoint {
        Verdict { trim_below: own, peer_left_behind: false }
    } else if known.bytes > known.bytes_max {
        Verdict { trim_below: own, peer_left_behind: true }
    } else {
        Verdict { trim_below: known.shared + 1, peer_left_behind: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_peer_lacks_is_kept_until_the_limit() {
        let known = Known { checkpoint: 100, shared: 40, bytes: 10, bytes_max: 20 };
        let cases = [
            (known, 41, false),
            (Known { shared: 500, ..known }, 101, false),
            (Known { shared: 0, ..known }, 1, false),
            (Known { bytes: 21, ..known }, 101, true),
            (Known { bytes: 21, shared: 100, ..known }, 101, false),
        ];
        for (known, trim_below, peer_left_behind) in cases {
            assert_eq!(retain(known), Verdict { trim_below, peer_left_behind }, "{known:?}");
        }
    }
}
