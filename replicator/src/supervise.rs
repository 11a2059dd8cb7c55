//! The sidecar's pid 1. It holds the descriptors of the application's mount, starts the daemon, and starts it again in
//! place when it dies, so that the application waits a few milliseconds and sees no error. It parses no data and has no
//! threads: what can go wrong here must be little, because its death costs seconds.
//!
//! ```text
//!            get / adopt                    daemon dies: starts another, descriptors resumed
//! plugin <---------------> supervisor ----> daemon
//!            agreed             ^   |       SIGTERM: passed on; ends when the daemon has drained
//!                               +---+
//!                     plugin away: tries to reach it again, gives the descriptors back
//! ```

use crate::handover::{self, Given, PluginSocket, receive, send};
use crate::settings::SuperviseSettings;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use rustix::fs::MemfdFlags;
use rustix::io::{Errno, FdFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// What to supervise.
#[derive(Clone, Debug)]
pub struct Supervision {
    /// The node plugin's socket.
    pub socket: PathBuf,
    /// The daemon and its arguments.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

impl From<SuperviseSettings> for Supervision {
    fn from(settings: SuperviseSettings) -> Self {
        Self { socket: settings.socket, program: PathBuf::from("/proc/self/exe"), arguments: settings.daemon }
    }
}

/// A daemon that lived this long did not die of its start.
const HEALTHY: Duration = Duration::from_secs(10);
/// After so many deaths in a row, each soon after the start, kubelet shall restart the container and say so in the pod.
const DEATHS_MAX: u32 = 10;
const PAUSE_MAX: Duration = Duration::from_secs(5);
const REACH_PLUGIN_EVERY: Duration = Duration::from_millis(250);

/// Why the supervisor ends without having been told to.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("{doing}")]
    Io { doing: &'static str, source: io::Error },
    #[error("the daemon died {0} times in a row, each time soon after its start")]
    Dies(u32),
}

fn failed<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Io { doing, source: source.into() }
}

/// Runs until SIGTERM has been passed on and the daemon has ended, whose exit code it returns.
pub fn run(supervision: &Supervision) -> Result<ExitCode, Error> {
    let signals = signals().map_err(failed("block signals"))?;
    let Some((plugin, given)) = obtain(supervision, &signals)? else { return Ok(ExitCode::SUCCESS) };
    // Children inherit what is not marked otherwise: the devices and the shared memory are for them.
    for device in &given.devices {
        rustix::io::fcntl_setfd(device, FdFlags::empty()).map_err(failed("keep descriptors over exec"))?;
    }
    let shared =
        rustix::fs::memfd_create("tandem-shared", MemfdFlags::empty()).map_err(failed("create shared memory"))?;
    Supervisor {
        supervision,
        signals,
        plugin: Some(plugin),
        devices: given.devices,
        fresh: given.fresh,
        agreed: given.agreed,
        shared,
        stopping: false,
    }
    .run()
}

/// Asks the plugin until it has a data volume for us. `None`: told to end before.
fn obtain(supervision: &Supervision, signals: &OwnedFd) -> Result<Option<(PluginSocket, Given)>, Error> {
    let mut told = false;
    loop {
        let why = match PluginSocket::connect(&supervision.socket).and_then(|plugin| Ok((plugin.get()?, plugin))) {
            Ok((Some(given), plugin)) => return Ok(Some((plugin, given))),
            Ok((None, _)) => "it has no data volume for this pod yet".to_owned(),
            Err(error) => error.to_string(),
        };
        if !told {
            tracing::warn!(why, socket = %supervision.socket.display(), "waiting for the node plugin");
            told = true;
        }
        wait_readable(&[signals.as_fd()], Some(REACH_PLUGIN_EVERY)).map_err(failed("wait"))?;
        while let Some(signal) = next_signal(signals).map_err(failed("read signals"))? {
            if signal != libc::SIGCHLD as u32 {
                return Ok(None);
            }
        }
    }
}

struct Daemon {
    pid: Pid,
    since: Instant,
    /// Its socket to us.
    socket: Option<OwnedFd>,
}

struct Supervisor<'a> {
    supervision: &'a Supervision,
    signals: OwnedFd,
    /// `None` while the plugin is away.
    plugin: Option<PluginSocket>,
    devices: Vec<OwnedFd>,
    fresh: bool,
    agreed: Option<String>,
    shared: OwnedFd,
    stopping: bool,
}

impl Supervisor<'_> {
    fn run(&mut self) -> Result<ExitCode, Error> {
        let mut deaths = 0;
        let mut daemon = Some(self.start()?);
        let mut start_at = crate::clock::instant();
        loop {
            let pause = match (&daemon, &self.plugin) {
                (None, _) => Some(start_at.saturating_duration_since(crate::clock::instant())),
                (Some(_), None) => Some(REACH_PLUGIN_EVERY),
                (Some(_), Some(_)) => None,
            };
            self.wait(daemon.as_ref(), pause).map_err(failed("wait"))?;

            while let Some(signal) = next_signal(&self.signals).map_err(failed("read signals"))? {
                if signal == libc::SIGCHLD as u32 {
                    continue;
                }
                self.stopping = true;
                tracing::info!("told to end; the daemon drains");
                if let Some(daemon) = &daemon
                    && let Err(errno) = kill_process(daemon.pid, Signal::TERM)
                {
                    tracing::warn!(%errno, "the daemon could not be told");
                }
            }
            // Whatever is pid 1 inherits the orphans of its namespace as well.
            while let Some(ended) = reap() {
                let Some(was) = daemon.take_if(|daemon| daemon.pid == ended.pid) else { continue };
                if self.stopping {
                    tracing::info!(ended.code, ended.signal, "the daemon has ended");
                    return Ok(ExitCode::from(ended.exit_code()));
                }
                deaths = if was.since.elapsed() >= HEALTHY { 1 } else { deaths + 1 };
                if deaths > DEATHS_MAX {
                    return Err(Error::Dies(deaths));
                }
                let pause = pause_after(deaths);
                tracing::warn!(ended.code, ended.signal, deaths, ?pause, "the daemon died; another takes over");
                start_at = crate::clock::instant() + pause;
            }
            if daemon.is_none() {
                if self.stopping {
                    return Ok(ExitCode::SUCCESS);
                }
                if crate::clock::instant() >= start_at {
                    daemon = Some(self.start()?);
                }
            }
            if let Some(daemon) = &mut daemon {
                self.hear(daemon);
            }
            self.keep_plugin();
        }
    }

    fn wait(&self, daemon: Option<&Daemon>, pause: Option<Duration>) -> io::Result<()> {
        let mut sources = vec![self.signals.as_fd()];
        sources.extend(self.plugin.as_ref().map(AsFd::as_fd));
        sources.extend(daemon.and_then(|daemon| daemon.socket.as_ref()).map(AsFd::as_fd));
        wait_readable(&sources, pause)
    }

    fn start(&mut self) -> Result<Daemon, Error> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(failed("make a socket for the daemon"))?;
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).map_err(failed("keep descriptors over exec"))?;
        let numbers: Vec<_> = self.devices.iter().map(|device| device.as_raw_fd().to_string()).collect();
        let mut command = Command::new(&self.supervision.program);
        command
            .args(&self.supervision.arguments)
            .env(handover::DEVICES, numbers.join(","))
            .env(handover::CONNECTION, if self.fresh { "fresh" } else { "resumed" })
            .env(handover::AGREED, self.agreed.as_deref().unwrap_or_default())
            .env(handover::SUPERVISOR, theirs.as_raw_fd().to_string())
            .env(handover::SHARED, self.shared.as_raw_fd().to_string());
        #[allow(unsafe_code, reason = "the only way to say what happens between fork and exec")]
        // SAFETY: sigprocmask is async-signal-safe, and nothing else runs in there.
        unsafe {
            command.pre_exec(unblock_signals);
        }
        let child = command.spawn().map_err(failed("start the daemon"))?;
        let pid = Pid::from_child(&child);
        tracing::info!(pid = pid.as_raw_nonzero().get(), fresh = self.fresh, "daemon started");
        // Whoever comes next finds the connection used, whatever this one gets done.
        self.fresh = false;
        Ok(Daemon { pid, since: crate::clock::instant(), socket: Some(ours) })
    }

    /// What the daemon has to say: only ever what it agrees on with the kernel.
    fn hear(&mut self, daemon: &mut Daemon) {
        while let Some(socket) = &daemon.socket
            && readable(socket)
        {
            match receive(socket) {
                Ok(Some((text, _))) => {
                    let answer = match text.strip_prefix("agreed ") {
                        Some(agreed) => {
                            self.agreed = Some(agreed.to_owned());
                            if let Some(plugin) = &self.plugin
                                && let Err(error) = plugin.agreed(agreed)
                            {
                                // It learns with the next adoption.
                                tracing::warn!(%error, "the node plugin did not keep what was agreed");
                                self.plugin = None;
                            }
                            "ok"
                        }
                        None => "not a message known here",
                    };
                    if let Err(errno) = send(socket, answer, &[]) {
                        tracing::warn!(%errno, "the daemon could not be answered");
                    }
                }
                Ok(None) | Err(_) => daemon.socket = None,
            }
        }
    }

    /// The plugin says nothing by itself: if its socket is readable, it has gone.
    fn keep_plugin(&mut self) {
        if self.plugin.as_ref().is_some_and(readable) {
            tracing::warn!("the node plugin is away");
            self.plugin = None;
        }
        if self.plugin.is_some() {
            return;
        }
        let adopted = PluginSocket::connect(&self.supervision.socket).and_then(|plugin| {
            plugin.adopt(&self.devices, self.agreed.as_deref())?;
            Ok(plugin)
        });
        match adopted {
            Ok(plugin) => {
                tracing::info!("the node plugin is back and has its descriptors");
                self.plugin = Some(plugin);
            }
            Err(error) => tracing::debug!(%error, "the node plugin is not back"),
        }
    }
}

/// At once after the first death: an application waits. Then longer and longer.
fn pause_after(deaths: u32) -> Duration {
    match deaths {
        0..=2 => Duration::ZERO,
        _ => Duration::from_millis(100 << (deaths - 3).min(10)).min(PAUSE_MAX),
    }
}

struct Ended {
    pid: Pid,
    code: Option<i32>,
    signal: Option<i32>,
}

impl Ended {
    fn exit_code(&self) -> u8 {
        match (self.code, self.signal) {
            (Some(code), _) => u8::try_from(code).unwrap_or(1),
            (None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(1),
            (None, None) => 1,
        }
    }
}

fn reap() -> Option<Ended> {
    match wait(WaitOptions::NOHANG) {
        Ok(Some((pid, status))) => Some(Ended { pid, code: status.exit_status(), signal: status.terminating_signal() }),
        // None has ended, or there is none.
        Ok(None) | Err(_) => None,
    }
}

/// Signals as a descriptor. They are blocked from here on: this process looks for them when it is ready to.
fn signals() -> io::Result<OwnedFd> {
    #[allow(unsafe_code, reason = "rustix has no wrapper for signal masks and signalfd")]
    // SAFETY: the set is initialised before it is used and lives through the calls; the descriptor is new and ours.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGCHLD] {
            libc::sigaddset(&raw mut set, signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            descriptor => Ok(OwnedFd::from_raw_fd(descriptor)),
        }
    }
}

/// A child inherits what is blocked here: without this the daemon would not hear SIGTERM and never drain.
fn unblock_signals() -> io::Result<()> {
    #[allow(unsafe_code, reason = "rustix has no wrapper for signal masks")]
    // SAFETY: the set is initialised before it is used and lives through the calls.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        if libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn next_signal(signals: &OwnedFd) -> io::Result<Option<u32>> {
    // struct signalfd_siginfo: the signal's number comes first.
    let mut information = [0; 128];
    match rustix::io::read(signals, &mut information) {
        Ok(_) => {
            let [a, b, c, d, ..] = information;
            Ok(Some(u32::from_ne_bytes([a, b, c, d])))
        }
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn readable(source: &impl AsFd) -> bool {
    let mut sources = [PollFd::new(source, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut sources, Some(&at_once)), Ok(1..))
}

fn wait_readable(sources: &[rustix::fd::BorrowedFd<'_>], pause: Option<Duration>) -> io::Result<()> {
    let mut sources: Vec<_> = sources.iter().map(|source| PollFd::new(source, PollFlags::IN)).collect();
    let pause =
        pause.map(|pause| Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: i64::from(pause.subsec_nanos()) });
    match poll(&mut sources, pause.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_deaths_cost_nothing_and_later_ones_a_bounded_pause() {
        assert_eq!(pause_after(1), Duration::ZERO);
        assert_eq!(pause_after(3), Duration::from_millis(100));
        assert!((1..=DEATHS_MAX).all(|deaths| pause_after(deaths) <= PAUSE_MAX));
    }
}
