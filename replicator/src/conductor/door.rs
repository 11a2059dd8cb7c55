//! What the kernel meets before this member leads: requests wait, except for a look at the root, which whoever starts the
//! application's container takes. Behind the door is the capture of the reign.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use crate::capture::Capture;
use crate::capture::transport::{Handler, Reply};
use crate::capture::wire::{Attr, Operation, Request, StatFs};

#[derive(Default)]
enum State {
    #[default]
    Closed,
    Open(Arc<Capture>),
    Refused,
}

/// The application's mount, whoever serves it.
#[derive(Default)]
pub struct Door {
    state: Mutex<State>,
    changed: Condvar,
}

impl Door {
    /// From now on requests are served.
    pub fn open(&self, capture: Arc<Capture>) {
        *self.state.lock() = State::Open(capture);
        self.changed.notify_all();
    }

    /// Requests that wait, and all that come, are answered EIO; a file system that was open goes on answering reads.
    pub fn refuse(&self) {
        let mut state = self.state.lock();
        if matches!(*state, State::Closed) {
            *state = State::Refused;
            self.changed.notify_all();
        }
    }

    fn capture(&self) -> Result<Arc<Capture>, Errno> {
        let mut state = self.state.lock();
        loop {
            match &*state {
                State::Open(capture) => return Ok(Arc::clone(capture)),
                State::Refused => return Err(Errno::IO),
                State::Closed => self.changed.wait(&mut state),
            }
        }
    }
}

impl Handler for Door {
    fn handle(&self, request: Request<'_>, reply: Reply) {
        let closed = !matches!(*self.state.lock(), State::Open(_));
        if closed && request.nodeid == 1 {
            if matches!(request.operation, Operation::GetAttributes { .. }) {
                let attr = Attr { ino: 1, mode: 0o040_755, nlink: 2, blksize: 4096, ..Attr::default() };
                return reply.attributes(&attr, 0);
            }
            if matches!(request.operation, Operation::StatFs) {
                return reply.statfs(&StatFs { bsize: 4096, frsize: 4096, namelen: 255, ..StatFs::default() });
            }
        }
        if closed && !request.operation.wants_answer() {
            return drop(reply);
        }
        match self.capture() {
            Ok(capture) => capture.handle(request, reply),
            Err(errno) => reply.error(errno),
        }
    }
}
