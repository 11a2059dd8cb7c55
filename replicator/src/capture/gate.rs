//! Whether this member may change anything, asked by every mutation on its way.

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

/// What happens to a mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It waits.
    Held { epoch: u64 },
    /// It is performed in this epoch.
    Open { epoch: u64 },
    /// It is answered EIO. There is no way back.
    Refused,
}

/// The gate of the write path. Begins held.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Default for Gate {
    fn default() -> Self {
        Self { state: Mutex::new(State::Held { epoch: 0 }), changed: Condvar::new() }
    }
}

impl Gate {
    /// The epoch to perform in; `None`: wait; an error: refused.
    pub(crate) fn pass(&self) -> Result<Option<u64>, Errno> {
        match *self.state.lock() {
            State::Open { epoch } => Ok(Some(epoch)),
            State::Held { .. } => Ok(None),
            State::Refused => Err(Errno::IO),
        }
    }

    /// Waits while the gate is held.
    pub(crate) fn wait(&self) {
        let mut state = self.state.lock();
        while matches!(*state, State::Held { .. }) {
            self.changed.wait(&mut state);
        }
    }

    /// Whether mutations are performed.
    pub fn is_open(&self) -> bool {
        matches!(*self.state.lock(), State::Open { .. })
    }

    pub(crate) fn open(&self, epoch: u64) -> Result<(), Errno> {
        self.change(|state| match state {
            State::Refused => None,
            State::Held { .. } | State::Open { .. } => Some(State::Open { epoch }),
        })
    }

    pub(crate) fn hold(&self) {
        // A gate that refuses goes on refusing, which holds everything just as well.
        self.change(|state| match state {
            State::Open { epoch } | State::Held { epoch } => Some(State::Held { epoch }),
            State::Refused => None,
        })
        .ok();
    }

    /// Opens a held gate again, in the epoch it was open in; one that never was open stays as it is.
    pub(crate) fn resume(&self) {
        self.change(|state| match state {
            State::Held { epoch } if epoch > 0 => Some(State::Open { epoch }),
            State::Held { .. } | State::Open { .. } | State::Refused => None,
        })
        .ok();
    }

    pub(crate) fn refuse(&self) {
        self.change(|_| Some(State::Refused)).ok();
    }

    fn change(&self, next: impl FnOnce(State) -> Option<State>) -> Result<(), Errno> {
        let mut state = self.state.lock();
        match next(*state) {
            Some(next) => {
                *state = next;
                self.changed.notify_all();
                Ok(())
            }
            None => Err(Errno::IO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_that_refuses_never_opens_again() {
        let gate = Gate::default();
        assert_eq!(gate.pass(), Ok(None));
        gate.resume();
        assert_eq!(gate.pass(), Ok(None), "what never was open is not resumed");
        gate.open(3).unwrap();
        assert_eq!(gate.pass(), Ok(Some(3)));
        gate.hold();
        assert_eq!(gate.pass(), Ok(None));
        gate.resume();
        assert_eq!(gate.pass(), Ok(Some(3)));
        gate.refuse();
        gate.hold();
        gate.resume();
        assert_eq!(gate.open(4), Err(Errno::IO));
        assert_eq!(gate.pass(), Err(Errno::IO));
    }
}
