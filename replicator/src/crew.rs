//! Work that must not wait for other work: each worker has a thread of its own, which sleeps until its bell rings or its
//! time comes. A worker does one piece of work a turn and says what it waits for, so that the simulation can let all of
//! them take turns on one thread, in an order that a seed decides.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// What a worker wants after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Another turn at once.
    Again,
    /// One when the bell rings, or after so long.
    Wait(Option<Duration>),
    /// None any more.
    Done,
}

/// Wakes a worker. A bell that rings while the worker is at work is heard after it.
#[derive(Clone, Default)]
pub struct Bell(Arc<Hook>);

#[derive(Default)]
struct Hook {
    rung: Mutex<bool>,
    heard: Condvar,
    #[cfg(test)]
    simulated: tokio::sync::Notify,
}

impl Bell {
    /// Wakes the worker.
    pub fn ring(&self) {
        *self.0.rung.lock() = true;
        self.0.heard.notify_one();
        #[cfg(test)]
        self.0.simulated.notify_one();
    }

    /// Whether it rang before the time was over.
    fn wait(&self, patience: Option<Duration>) -> bool {
        let mut rung = self.0.rung.lock();
        if !*rung {
            match patience {
                Some(patience) => {
                    self.0.heard.wait_for(&mut rung, patience);
                }
                None => self.0.heard.wait(&mut rung),
            }
        }
        std::mem::take(&mut *rung)
    }
}

/// A worker at work.
pub struct Hired(Option<JoinHandle<()>>);

impl Hired {
    /// Returns when the worker is done; somebody has told it to end.
    pub fn wait(&mut self) {
        if let Some(thread) = self.0.take()
            && thread.join().is_err()
        {
            tracing::error!("a worker ended in a panic");
        }
    }
}

/// Starts a worker. It is asked for a turn at once; it hears whether it is asked because its time has come.
pub fn hire(name: &str, bell: &Bell, mut turn: impl FnMut(bool) -> Turn + Send + 'static) -> io::Result<Hired> {
    let bell = bell.clone();
    #[cfg(test)]
    if crate::simulated::is_on() {
        tokio::spawn(async move {
            let mut due = false;
            loop {
                due = match turn(due) {
                    Turn::Again => {
                        tokio::task::yield_now().await;
                        false
                    }
                    Turn::Wait(None) => {
                        bell.0.simulated.notified().await;
                        false
                    }
                    Turn::Wait(Some(patience)) => {
                        tokio::time::timeout(patience, bell.0.simulated.notified()).await.is_err()
                    }
                    Turn::Done => return,
                };
            }
        });
        return Ok(Hired(None));
    }
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
        let mut due = false;
        loop {
            due = match turn(due) {
                Turn::Again => false,
                Turn::Wait(patience) => !bell.wait(patience),
                Turn::Done => return,
            };
        }
    })?;
    Ok(Hired(Some(thread)))
}

/// Runs a step on a thread that may wait for the disk.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    #[cfg(test)]
    if crate::simulated::is_on() {
        tokio::time::sleep(crate::simulated::slowness()).await;
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn a_bell_that_rings_during_a_turn_is_heard_after_it() {
        let (bell, turns) = (Bell::default(), Arc::new(AtomicU64::new(0)));
        let (own, counted) = (bell.clone(), Arc::clone(&turns));
        let mut worker = hire("worker", &bell, move |due| {
            assert!(!due);
            if counted.fetch_add(1, Ordering::AcqRel) == 1 {
                return Turn::Done;
            }
            own.ring();
            Turn::Wait(None)
        })
        .unwrap();
        worker.wait();
        assert_eq!(turns.load(Ordering::Acquire), 2);
    }

    #[test]
    fn a_worker_hears_that_its_time_has_come() {
        let mut turns = 0;
        let mut worker = hire("worker", &Bell::default(), move |due| {
            turns += 1;
            assert_eq!(due, turns > 1);
            if turns < 3 { Turn::Wait(Some(Duration::from_millis(1))) } else { Turn::Done }
        })
        .unwrap();
        worker.wait();
    }
}
