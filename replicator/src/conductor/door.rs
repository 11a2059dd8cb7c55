//! What the kernel meets before this member leads: requests wait, except for a look at the root, which whoever starts the
//! application's container takes. Behind the door is the capture of the reign.
//!
//! A request that waits keeps no thread, so that the kernel's word about a process that was killed meanwhile is heard.

use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::capture::Capture;
use crate::capture::requests::Waiting;
use crate::capture::transport::{Handler, Reply};
use crate::capture::wire::{Attr, Operation, Request, StatFs};

enum State {
    Closed(Vec<Waiting>),
    Open(Arc<Capture>),
    Refused,
}

/// The application's mount, whoever serves it.
pub struct Door {
    state: Mutex<State>,
}

impl Default for Door {
    fn default() -> Self {
        Self { state: Mutex::new(State::Closed(Vec::new())) }
    }
}

impl Door {
    /// From now on requests are served.
    pub fn open(&self, capture: Arc<Capture>) {
        let before = std::mem::replace(&mut *self.state.lock(), State::Open(Arc::clone(&capture)));
        if let State::Closed(waiting) = before {
            capture.take_up_all(waiting);
        }
    }

    /// What is behind it.
    #[cfg(test)]
    pub(crate) fn capture(&self) -> Option<Arc<Capture>> {
        match &*self.state.lock() {
            State::Open(capture) => Some(Arc::clone(capture)),
            State::Closed(_) | State::Refused => None,
        }
    }

    /// Requests that wait, and all that come, are answered EIO; a file system that was open goes on answering reads.
    pub fn refuse(&self) {
        let mut state = self.state.lock();
        let waiting = match &mut *state {
            State::Closed(waiting) => std::mem::take(waiting),
            State::Open(_) | State::Refused => return,
        };
        *state = State::Refused;
        drop(state);
        waiting.into_iter().for_each(|one| one.refuse(Errno::IO));
    }
}

impl Handler for Door {
    fn handle(&self, request: Request<'_>, reply: Reply) {
        let mut state = self.state.lock();
        let waiting = match &mut *state {
            State::Open(capture) => {
                let capture = Arc::clone(capture);
                drop(state);
                return capture.handle(request, reply);
            }
            State::Refused => {
                drop(state);
                return if request.operation.wants_answer() { reply.error(Errno::IO) } else { drop(reply) };
            }
            State::Closed(waiting) => waiting,
        };
        if request.nodeid == 1 {
            if matches!(request.operation, Operation::GetAttributes { .. }) {
                let attr = Attr { ino: 1, mode: 0o040_755, nlink: 2, blksize: 4096, ..Attr::default() };
                return reply.attributes(&attr, 0);
            }
            if matches!(request.operation, Operation::StatFs) {
                return reply.statfs(&StatFs { bsize: 4096, frsize: 4096, namelen: 255, ..StatFs::default() });
            }
        }
        if !request.operation.wants_answer() {
            return drop(reply);
        }
        waiting.push(Waiting::Request(Box::from(request.message), reply.park()));
    }
}
