//! The list of faults, with the row of the fault matrix that each plays, and how often it comes.

use super::dice::Dice;
use super::subject::{Scene, Subject};
use super::{everybody, one};
use crate::cluster::Cluster;
use anyhow::Result;
use std::sync::Arc;
use std::time::Instant;

/// What a fault writes down about itself while it happens.
#[derive(Debug, Default)]
pub struct Account {
    pub began: Option<Instant>,
    /// What chance decided: which member, how long, where.
    pub note: String,
    /// Times worth a table of their own, in seconds.
    pub figures: Vec<(&'static str, f64)>,
    /// The member whose node it was, for faults of nodes.
    pub node: Option<&'static str>,
}

impl Account {
    /// It happens now; what came before was preparation.
    pub fn begin(&mut self) {
        self.began = Some(Instant::now());
    }
}

/// Whether a change of leaders is to be expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upsets {
    /// The master, or it was asked for.
    Master,
    /// Something else: whoever leads goes on leading.
    Nobody,
    /// It depends on which node it was.
    Node,
}

/// What happens.
#[derive(Clone, Copy)]
pub enum Play {
    /// To one pair, while others have faults of their own.
    One(OfOne),
    /// To all pairs at once, alone.
    All(OfAll),
}

/// A kind of fault.
#[derive(Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    /// Of the fault matrix.
    pub row: u32,
    pub weight: u64,
    pub upsets: Upsets,
    pub play: Play,
}

const fn one(name: &'static str, row: u32, weight: u64, upsets: Upsets, play: OfOne) -> Kind {
    Kind { name, row, weight, upsets, play: Play::One(play) }
}

const fn all(name: &'static str, row: u32, weight: u64, upsets: Upsets, play: OfAll) -> Kind {
    Kind { name, row, weight, upsets, play: Play::All(play) }
}

/// A fault of one pair.
pub type OfOne = fn(&Subject, &Scene, &mut Dice, &mut Account) -> Result<()>;
/// A fault of all pairs.
pub type OfAll = fn(&Cluster, &[Arc<Subject>], &mut Dice, &mut Account) -> Result<()>;

use Upsets::{Master, Nobody, Node};

/// What happens to one pair.
pub const OF_ONE: &[Kind] = &[
    one("application killed", 1, 3, Nobody, |s, c, _, a| one::processes::application(s, c, a)),
    one("master's serving process killed", 1, 4, Master, |_, c, _, a| one::processes::serving(&c.master, a)),
    one("replicant's serving process killed", 1, 2, Nobody, |_, c, _, a| one::processes::serving(&c.replicant, a)),
    one("master's sidecar killed", 1, 2, Master, |_, c, _, a| one::processes::sidecar(&c.master, a)),
    one("replicant's sidecar killed", 1, 1, Nobody, |_, c, _, a| one::processes::sidecar(&c.replicant, a)),
    one("master's pod killed", 1, 4, Master, |_, c, _, a| one::processes::pod(&c.master, a)),
    one("replicant's pod killed", 1, 2, Nobody, |_, c, _, a| one::processes::pod(&c.replicant, a)),
    one("master's pod deleted", 2, 4, Master, |s, c, _, a| one::processes::delete(s, &c.master, None, a)),
    one("replicant's pod deleted", 2, 2, Nobody, |s, c, _, a| one::processes::delete(s, &c.replicant, None, a)),
    one("master's pod deleted by force", 2, 2, Master, |s, c, _, a| one::processes::delete(s, &c.master, Some(0), a)),
    one("replicant's pod deleted by force", 2, 1, Nobody, |s, c, _, a| {
        one::processes::delete(s, &c.replicant, Some(0), a)
    }),
    one("members cut from each other", 4, 3, Nobody, one::network::apart),
    one("members cut one way", 4, 3, Nobody, one::network::one_way),
    one("link between members flaps", 4, 2, Nobody, one::network::flapping),
    one("master cut from the API server", 4, 2, Nobody, |_, c, d, a| one::network::from_api(&c.master, d, a)),
    one("replicant cut from the API server", 4, 1, Nobody, |_, c, d, a| one::network::from_api(&c.replicant, d, a)),
    one("master cut from everything", 4, 4, Master, one::network::isolated),
    one("replicant cut from everything", 4, 2, Nobody, |_, c, d, a| one::network::from_everybody(&c.replicant, d, a)),
    one("answers of the API server lost", 6, 2, Master, one::network::lost_answers),
    one("master's serving process stands still", 11, 4, Master, |s, c, d, a| one::stops::signal(s, &c.master, d, a)),
    one("replicant's serving process stands still", 11, 2, Nobody, |s, c, d, a| {
        one::stops::signal(s, &c.replicant, d, a)
    }),
    one("master's pod frozen", 11, 3, Master, |s, c, d, a| one::stops::freezer(s, &c.master, d, a)),
    one("replicant's pod frozen", 11, 2, Nobody, |s, c, d, a| one::stops::freezer(s, &c.replicant, d, a)),
    one("device under the master's volume dies", 8, 3, Master, |s, c, _, a| one::damage::device(s, c, true, a)),
    one("device under the replicant's volume dies", 8, 2, Nobody, |s, c, _, a| one::damage::device(s, c, false, a)),
    one("master's journal damaged while it is down", 12, 2, Master, |s, c, d, a| {
        one::damage::journal(s, &c.master, d, a)
    }),
    one("replicant's journal damaged while it is down", 12, 2, Nobody, |s, c, d, a| {
        one::damage::journal(s, &c.replicant, d, a)
    }),
    one("replicant's files damaged, then compared", 12, 2, Nobody, one::damage::files),
    one("killed during a comparison", 15, 3, Master, one::copies::comparison),
    one("replicant's volume lost, killed while it is copied", 15, 2, Nobody, one::copies::volume),
    one("switchover", 16, 5, Master, one::people::switchover),
    one("failback", 16, 3, Master, one::people::failback),
    one("switchover and failback at once", 17, 2, Master, one::people::both),
    one("a token repeated", 17, 1, Master, one::people::repeated),
    one("record deleted", 17, 2, Master, one::people::record_deleted),
];

/// What happens to all pairs at once.
pub const OF_ALL: &[Kind] = &[
    all("node loses power", 3, 6, Node, everybody::nodes::power),
    all("node's processes end", 3, 3, Node, everybody::nodes::processes),
    all("both nodes lose power, one after the other", 3, 3, Master, everybody::nodes::both),
    all("node cut off", 4, 2, Node, everybody::nodes::cut_off),
    all("node frozen", 11, 2, Node, everybody::nodes::frozen),
    all("API server away", 5, 3, Nobody, everybody::control::api_away),
    all("API server away, applications killed", 5, 1, Nobody, everybody::control::api_away_applications),
    all("API server away, masters' serving processes killed", 5, 2, Master, everybody::control::api_away_serving),
    all("API server slow", 6, 3, Nobody, everybody::control::api_slow),
    all("API server slow, masters' pods killed", 6, 2, Master, everybody::control::api_slow_pods),
    all("operators killed", 1, 3, Nobody, everybody::control::operators_killed),
    all("operators killed during switchovers", 1, 2, Master, everybody::control::operators_killed_in_switchover),
    all("operator paused in the middle of switchovers", 18, 2, Master, everybody::control::operator_paused),
    all("several operators act", 18, 2, Master, everybody::control::several_operators),
    all("node plugins killed", 1, 2, Nobody, everybody::control::plugins_killed),
    all("node plugins and masters' serving processes killed", 1, 1, Master, everybody::control::plugins_and_serving),
];
