//! Whether this member may change anything, asked by every mutation on its way. A request that must wait does not keep a
//! thread: it is put down here, and whoever opens the gate takes all of them up again, so reads go on meanwhile.
//!
//! ```text
//! Held <-> Open        Held -> ReadOnly        any -> Refused (no way back)
//! ```

use parking_lot::Mutex;
use rustix::io::Errno;

/// What happens to a mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It waits. The epoch is the one the gate was open in before (0: never).
    Held { epoch: u64 },
    /// It is performed in this epoch.
    Open { epoch: u64 },
    /// It is answered EROFS: the other member writes, this one shows.
    ReadOnly,
    /// It is answered EIO. There is no way back.
    Refused,
}

/// What the gate says to a mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Perform in this epoch.
    Pass(u64),
    /// Wait: `put_down`.
    Wait,
    /// Answer this.
    Refuse(Errno),
}

/// The gate of the write path, and the requests of type `R` that wait at it. Begins held.
#[derive(Debug)]
pub struct Gate<R> {
    inner: Mutex<Inner<R>>,
}

#[derive(Debug)]
struct Inner<R> {
    state: State,
    /// While held: nothing waits any longer, it is answered EIO.
    failing: bool,
    waiting: Vec<R>,
}

impl<R> Default for Gate<R> {
    fn default() -> Self {
        Self { inner: Mutex::new(Inner { state: State::Held { epoch: 0 }, failing: false, waiting: Vec::new() }) }
    }
}

impl<R> Gate<R> {
    pub(crate) fn ask(&self) -> Word {
        self.inner.lock().word()
    }

    /// Leaves a request here until the gate opens or refuses; gives it back if it need not wait any more.
    pub(crate) fn put_down(&self, request: R) -> Option<R> {
        let mut inner = self.inner.lock();
        if inner.word() == Word::Wait {
            inner.waiting.push(request);
            None
        } else {
            Some(request)
        }
    }

    /// Whether mutations are performed.
    pub fn is_open(&self) -> bool {
        matches!(self.inner.lock().state, State::Open { .. })
    }

    /// Whether nothing can have changed.
    pub(crate) fn shows_only(&self) -> bool {
        self.inner.lock().state == State::ReadOnly
    }

    /// The requests that waited are to be tried again. So it is with every call below that gives some back.
    pub(crate) fn open(&self, epoch: u64) -> Result<Vec<R>, Errno> {
        let mut inner = self.inner.lock();
        if inner.state == State::Refused {
            return Err(Errno::IO);
        }
        inner.state = State::Open { epoch };
        inner.failing = false;
        Ok(std::mem::take(&mut inner.waiting))
    }

    pub(crate) fn hold(&self) {
        let mut inner = self.inner.lock();
        inner.state = match inner.state {
            State::Open { epoch } | State::Held { epoch } => State::Held { epoch },
            // They change nothing, which is all that holding is for.
            State::ReadOnly => State::ReadOnly,
            State::Refused => State::Refused,
        };
    }

    /// Opens a held gate again, in the epoch it was open in; one that never was open stays as it is.
    pub(crate) fn resume(&self) -> Vec<R> {
        let mut inner = self.inner.lock();
        inner.failing = false;
        match inner.state {
            State::Held { epoch } if epoch > 0 => inner.state = State::Open { epoch },
            State::Held { .. } | State::Open { .. } | State::ReadOnly | State::Refused => return Vec::new(),
        }
        std::mem::take(&mut inner.waiting)
    }

    /// While the gate is held, nothing waits any longer.
    pub(crate) fn fail_waiting(&self) -> Vec<R> {
        let mut inner = self.inner.lock();
        inner.failing = true;
        std::mem::take(&mut inner.waiting)
    }

    pub(crate) fn show_only(&self) -> Vec<R> {
        let mut inner = self.inner.lock();
        if inner.state != State::Refused {
            inner.state = State::ReadOnly;
        }
        std::mem::take(&mut inner.waiting)
    }

    pub(crate) fn refuse(&self) -> Vec<R> {
        let mut inner = self.inner.lock();
        inner.state = State::Refused;
        std::mem::take(&mut inner.waiting)
    }
}

impl<R> Inner<R> {
    fn word(&self) -> Word {
        match self.state {
            State::Open { epoch } => Word::Pass(epoch),
            State::Held { .. } if self.failing => Word::Refuse(Errno::IO),
            State::Held { .. } => Word::Wait,
            State::ReadOnly => Word::Refuse(Errno::ROFS),
            State::Refused => Word::Refuse(Errno::IO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_that_refuses_never_opens_again() {
        let gate: Gate<u8> = Gate::default();
        assert_eq!(gate.ask(), Word::Wait);
        gate.resume();
        assert_eq!(gate.ask(), Word::Wait, "what never was open is not resumed");
        gate.open(3).unwrap();
        assert_eq!(gate.ask(), Word::Pass(3));
        gate.hold();
        assert_eq!(gate.ask(), Word::Wait);
        gate.resume();
        assert_eq!(gate.ask(), Word::Pass(3));
        gate.refuse();
        gate.hold();
        gate.resume();
        gate.show_only();
        assert_eq!(gate.open(4), Err(Errno::IO));
        assert_eq!(gate.ask(), Word::Refuse(Errno::IO));
    }

    #[test]
    fn what_waits_is_taken_up_once_by_whoever_ends_the_waiting() {
        let gate = Gate::default();
        assert_eq!(gate.put_down(1), None);
        assert_eq!(gate.put_down(2), None);
        assert_eq!(gate.open(1), Ok(vec![1, 2]));
        assert_eq!(gate.put_down(3), Some(3), "nothing is left at an open gate");
        gate.hold();
        assert_eq!(gate.put_down(3), None);
        assert_eq!(gate.fail_waiting(), vec![3]);
        assert_eq!(gate.put_down(4), Some(4));
        assert_eq!(gate.ask(), Word::Refuse(Errno::IO));
        assert!(gate.resume().is_empty());
        assert_eq!(gate.ask(), Word::Pass(1));
    }

    #[test]
    fn a_gate_that_shows_only_can_open_later() {
        let gate: Gate<u8> = Gate::default();
        gate.show_only();
        gate.hold();
        assert_eq!(gate.ask(), Word::Refuse(Errno::ROFS));
        gate.open(2).unwrap();
        assert_eq!(gate.ask(), Word::Pass(2));
    }
}
