//! The runs: which trouble may happen, how often, and with which settings; and the rules that are left out one by one, with
//! what each omission must break.

use tandem_protocol::Settings;
use tandem_protocol::member::{AckPolicy, Mutation, Protection};

/// A fault of the world rather than of a member: something the design relies on around it is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// N7: the marker and the lead are two objects, each with its own version.
    TwoObjects,
    /// The stage that receives acknowledges from memory although the member said it must not.
    ReceiptsAnyway,
    /// N14: one member's testimony is enough for a new record.
    OneTestimony,
    /// N18: a process that should be gone can still write to a volume, though to one that nobody will read.
    Zombie,
}

/// One bounded world.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// By which the table names it.
    pub(crate) name: &'static str,
    /// In a few words.
    pub(crate) about: &'static str,
    pub(crate) settings: Settings,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) flaw: Option<Flaw>,
    /// Bounds: operations written, epochs begun, writes of the record; and how often each trouble may happen.
    pub(crate) writes: u8,
    pub(crate) epochs: u64,
    pub(crate) record_writes: u64,
    pub(crate) crashes: u8,
    pub(crate) lost: u8,
    pub(crate) cuts: u8,
    pub(crate) nominations: u8,
    pub(crate) stops: u8,
    pub(crate) disasters: u8,
    pub(crate) forces: u8,
    /// How often somebody deletes the record.
    pub(crate) deletions: u8,
    /// How often a human orders a comparison of the files.
    pub(crate) resyncs: u8,
    /// Async: operations that one failover may lose.
    pub(crate) lag: Option<u64>,
    pub(crate) lose_volume: bool,
    pub(crate) snapshots: bool,
    /// A volume may be set back in place; only after the record has noted its position (`true`), or at any time.
    pub(crate) roll_back: Option<bool>,
    pub(crate) zombie: bool,
    /// The watch shows the record to whoever does not ask.
    pub(crate) watch: bool,
    /// Processes also die between two effects of one step.
    pub(crate) torn: bool,
    pub(crate) heartbeats: bool,
    /// The answer to a reading may be old when it arrives.
    pub(crate) stale_reads: bool,
    /// From the very first start, instead of from a pair that is complete.
    pub(crate) cold: bool,
    /// Also: from every state the pair comes to rest when the trouble ends.
    pub(crate) rest: bool,
    /// What has to be met in it.
    pub(crate) failback: bool,
    pub(crate) tail: bool,
    /// Takes longer than a check on every change may.
    pub(crate) deep: bool,
}

impl Run {
    /// As the table shows them.
    pub(crate) fn bounds(&self) -> String {
        let Self { writes, epochs, record_writes, crashes, lost, cuts, .. } = self;
        format!("o{writes} e{epochs} r{record_writes} c{crashes} q{lost} l{cuts}")
    }
}

fn settings() -> Settings {
    Settings {
        interval: 1_000,
        release: 100,
        hold: u64::MAX,
        active_minimum: 0,
        stable: 0,
        join_within: 4,
        note_positions: u64::MAX,
        ..Settings::default()
    }
}

fn base(name: &'static str, about: &'static str) -> Run {
    Run {
        name,
        about,
        settings: settings(),
        mutation: None,
        flaw: None,
        writes: 2,
        epochs: 2,
        record_writes: 6,
        crashes: 1,
        lost: 1,
        cuts: 1,
        nominations: 0,
        stops: 0,
        disasters: 0,
        forces: 0,
        deletions: 0,
        resyncs: 0,
        lag: None,
        lose_volume: false,
        snapshots: false,
        roll_back: None,
        zombie: false,
        watch: false,
        torn: false,
        heartbeats: false,
        stale_reads: false,
        cold: false,
        rest: false,
        failback: false,
        tail: false,
        deep: false,
    }
}

fn received() -> Settings {
    Settings { ack_policy: AckPolicy::Received, ..settings() }
}

fn protected() -> Settings {
    // A silent master is overruled only after this: `Silence` must pass it.
    Settings { protection: Protection::MaxProtection, hold: Settings::default().hold, ..settings() }
}

fn lagging() -> Settings {
    Settings { protection: Protection::Async, ..settings() }
}

/// Every run in which everything must hold.
pub(crate) fn runs() -> Vec<Run> {
    let forced = Run {
        forces: 1,
        epochs: 3,
        record_writes: 5,
        lost: 0,
        cuts: 0,
        crashes: 0,
        writes: 1,
        ..base("S9", "a human's force")
    };
    let deleted = Run {
        deletions: 1,
        epochs: 3,
        record_writes: 4,
        lost: 0,
        cuts: 0,
        crashes: 0,
        writes: 1,
        ..base("S10", "the record is deleted, and made anew of two testimonies")
    };
    vec![
        Run { lost: 0, cuts: 0, writes: 1, ..base("S1", "durable, max availability: crashes") },
        Run { crashes: 0, writes: 1, ..base("S2", "the same: the connection, answers of the API late or lost") },
        Run {
            settings: protected(),
            lost: 0,
            cuts: 0,
            writes: 1,
            ..base("S5", "max protection: two copies of every acknowledgement")
        },
        Run { settings: received(), lost: 0, cuts: 0, writes: 1, ..base("S6", "received, with the dirty rule") },
        Run {
            settings: lagging(),
            lag: Some(1),
            lost: 0,
            crashes: 0,
            record_writes: 5,
            ..base("S11", "async: at most one operation per failover")
        },
        Run { rest: true, lost: 0, cuts: 0, writes: 1, record_writes: 4, ..base("G1", "durable: no dead end") },
        Run {
            settings: received(),
            rest: true,
            lost: 0,
            cuts: 0,
            writes: 1,
            record_writes: 4,
            ..base("G4", "received: no dead end")
        },
        Run {
            settings: protected(),
            rest: true,
            lost: 0,
            cuts: 1,
            writes: 1,
            record_writes: 4,
            ..base("G2", "max protection: no dead end")
        },
        Run {
            disasters: 1,
            lose_volume: true,
            lost: 0,
            cuts: 0,
            writes: 1,
            record_writes: 4,
            ..base("S7", "one volume is lost for ever")
        },
        Run {
            disasters: 1,
            snapshots: true,
            lost: 0,
            cuts: 0,
            writes: 1,
            record_writes: 4,
            ..base("S8", "an old snapshot is restored as a new volume")
        },
        forced.clone(),
        Run { deep: true, name: "S9c", about: "as S9, with a crash", crashes: 1, record_writes: 4, ..forced },
        Run {
            settings: noting(),
            disasters: 1,
            roll_back: Some(true),
            record_writes: 4,
            lost: 0,
            cuts: 0,
            writes: 1,
            ..base("H4", "a volume is set back to before what the record notes of it")
        },
        deleted.clone(),
        Run {
            zombie: true,
            lost: 0,
            cuts: 0,
            record_writes: 3,
            ..base("S13", "a process that should be gone, its volume fenced")
        },
        Run {
            nominations: 1,
            rest: true,
            lost: 0,
            cuts: 0,
            crashes: 0,
            writes: 1,
            record_writes: 4,
            ..base("H1", "a nomination at any time: no dead end")
        },
        Run {
            stops: 1,
            rest: true,
            lost: 0,
            cuts: 0,
            crashes: 0,
            writes: 1,
            record_writes: 4,
            ..base("H2", "a stop at any time: no dead end")
        },
        Run { deep: true, name: "S10c", about: "as S10, with a crash", crashes: 1, ..deleted.clone() },
        Run { rest: true, name: "H3", about: "the record is deleted at any time: no dead end", ..deleted.clone() },
        Run {
            deep: true,
            crashes: 1,
            disasters: 1,
            lose_volume: true,
            name: "S10v",
            about: "as S10, with a crash, and a volume is lost",
            ..deleted
        },
        Run {
            deep: true,
            disasters: 1,
            lose_volume: true,
            rest: true,
            lost: 0,
            cuts: 0,
            writes: 1,
            record_writes: 4,
            ..base("G3", "one volume is lost: no dead end but for a human")
        },
        Run {
            deep: true,
            resyncs: 1,
            rest: true,
            crashes: 0,
            writes: 1,
            record_writes: 4,
            ..base("G6", "a comparison is ordered, a claim's answer is late: no dead end")
        },
        Run { deep: true, lost: 0, cuts: 0, ..base("S3", "as S1, two operations") },
        Run { deep: true, cuts: 0, writes: 1, ..base("L1", "as S1, and answers of the API late or lost") },
        Run { deep: true, lost: 0, writes: 1, record_writes: 5, ..base("L2", "as S1, and the connection") },
        Run {
            deep: true,
            settings: lagging(),
            lag: Some(2),
            writes: 3,
            lost: 0,
            crashes: 0,
            record_writes: 5,
            ..base("L4", "async: at most two operations per failover")
        },
        Run {
            deep: true,
            failback: true,
            epochs: 3,
            record_writes: 6,
            crashes: 0,
            lost: 0,
            cuts: 0,
            ..base("S4", "failover and failback")
        },
    ]
}

/// A rule that is left out, and what that must break.
pub(crate) struct Naive {
    pub(crate) run: Run,
    /// How the broken sentence begins.
    pub(crate) breaks: &'static str,
    pub(crate) about: &'static str,
}

/// Every rule that is left out.
pub(crate) fn naive() -> Vec<Naive> {
    let naive = |run: Run, breaks, about| Naive { run, breaks, about };
    // Only the trouble that the story needs: it is found sooner, and reads better.
    let quiet = |name| Run { writes: 1, crashes: 0, lost: 0, cuts: 1, ..base(name, "") };
    let without = |name, mutation| Run { mutation: Some(mutation), ..quiet(name) };
    let crashing = |name, mutation| Run { crashes: 1, cuts: 0, ..without(name, mutation) };
    let flawed = |name, flaw| Run { flaw: Some(flaw), ..quiet(name) };
    vec![
        naive(without("N1", Mutation::ClaimWithoutMarker), "I2", "a claim on silence alone, whatever the marker says"),
        naive(without("N2", Mutation::AloneBeforeRecord), "I2", "acknowledges alone before that is recorded"),
        naive(
            Run { lost: 1, epochs: 1, ..without("N3", Mutation::RecordBeforeRule) },
            "I2",
            "the peer is published before it is required",
        ),
        naive(
            Run { lost: 1, cuts: 2, epochs: 1, ..without("N4", Mutation::TrustRead) },
            "I2",
            "a read settles a write without answer",
        ),
        naive(
            Run { lost: 1, cuts: 2, epochs: 1, ..without("N5", Mutation::IdenticalWrite) },
            "I2",
            "a write that changes nothing leaves the version, and a late one still fits",
        ),
        naive(
            Run { lost: 1, cuts: 2, epochs: 1, ..without("N6", Mutation::UnconditionalWrite) },
            "I2",
            "writes name no version: the last one wins",
        ),
        naive(flawed("N7", Flaw::TwoObjects), "I2", "marker and lead in two objects"),
        naive(
            Run { writes: 2, ..crashing("N8", Mutation::KeepEpoch) },
            "I1",
            "a restarted master goes on in its epoch",
        ),
        naive(
            Run { lost: 1, record_writes: 3, ..crashing("N9", Mutation::AcceptOldEpoch) },
            "I4",
            "operations of an epoch that is over are accepted",
        ),
        naive(
            Run { disasters: 1, lose_volume: true, ..crashing("N10", Mutation::IdentityByName) },
            "I2",
            "identity is the name: an empty volume counts as the certified one",
        ),
        naive(
            Run { disasters: 1, snapshots: true, ..crashing("N11", Mutation::IdentityByName) },
            "I2",
            "identity is the name: a restored snapshot counts as the certified volume",
        ),
        naive(
            Run { settings: received(), ..crashing("N12", Mutation::IgnoreDirty) },
            "I2",
            "what was acknowledged from memory and lost does not matter",
        ),
        naive(
            Run { settings: received(), crashes: 1, cuts: 0, ..flawed("N12b", Flaw::ReceiptsAnyway) },
            "I2",
            "acknowledgements from memory go on although a claim has begun",
        ),
        naive(
            Run { settings: lagging(), lag: Some(1), ..without("N13", Mutation::DiscardTail) },
            "I6",
            "a diverged tail is cut without being saved",
        ),
        naive(
            Run { forces: 1, epochs: 3, ..without("N13b", Mutation::DiscardTail) },
            "I6",
            "the same after a human's force, in synchronous mode",
        ),
        naive(
            Run { deletions: 1, epochs: 3, ..flawed("N14", Flaw::OneTestimony) },
            "I2",
            "a deleted record is made anew of one member's word",
        ),
        naive(
            Run {
                settings: noting(),
                disasters: 1,
                roll_back: Some(true),
                ..crashing("N16", Mutation::IgnorePositions)
            },
            "I2",
            "a volume that was set back is not noticed from the noted positions",
        ),
        naive(
            Run { disasters: 1, roll_back: Some(false), crashes: 1, cuts: 0, ..quiet("N17") },
            "I2",
            "nothing: a volume that was set back before the record noted its position cannot be told (the window that remains)",
        ),
        naive(
            Run { zombie: true, ..Run { crashes: 1, ..flawed("N18", Flaw::Zombie) } },
            "I",
            "a process that should be gone writes where nobody reads",
        ),
        naive(
            Run { settings: received(), rest: true, ..crashing("G5", Mutation::ClaimBeforeSync) },
            "the pair does not",
            "a claim before the journal is durable: the only certified copy may be dirty",
        ),
        naive(
            Run { resyncs: 1, rest: true, writes: 0, lost: 1, ..without("G6", Mutation::CopyDespiteClaim) },
            "the pair does not",
            "a copy begins although a claim may still take effect: the only certified copy is incomplete",
        ),
    ]
}

fn noting() -> Settings {
    Settings { note_positions: 100, ..settings() }
}
