//! The member's process: puts the rooms together, in the order in which they need each other, and nothing else.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tandem_protocol::member::effect::Exit;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::capture::transport::{self, Connection, Session};
use crate::conductor::door::Door;
use crate::conductor::{self, ClaimService, ConductorError, Given, Rhythm};
use crate::health::{self, Shown};
use crate::metrics::Metrics;
use crate::record::RecordKeeper;
use crate::record::file::FileKeeper;
use crate::record::kubernetes::KubernetesKeeper;
use crate::report::Account;
use crate::settings::ServeSettings;
use crate::{api, handover, orders, report, route};

/// Threads that serve the application's mount. Some of them may wait at the gate while others go on reading.
const THREADS: usize = 8;

/// Why the process ended badly.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ServeError {
    #[error("{doing}: {source}")]
    Io { doing: &'static str, source: io::Error },
    #[error(transparent)]
    Conductor(#[from] ConductorError),
    #[error(transparent)]
    Client(#[from] api::ClientError),
    #[error("neither the supervisor's descriptors nor --mount are given: there is no mount to serve")]
    NoMount,
}

fn on(doing: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Io { doing, source }
}

/// Runs a member until it ends.
pub async fn run(settings: ServeSettings) -> Result<ExitCode, ServeError> {
    raise_descriptors();
    let shown = Arc::new(Shown::default());
    let metrics = Arc::new(Metrics::default());
    health::serve(settings.health, Arc::clone(&shown), Arc::clone(&metrics)).await.map_err(on("listen for probes"))?;
    let door = Arc::new(Door::default());
    let (session, resumed) = mount(&settings)?;
    let running =
        session.run(Arc::clone(&door) as Arc<dyn transport::Handler>, THREADS).map_err(on("serve the mount"))?;
    let greeted = Arc::clone(&shown);
    let waiting = Arc::clone(&session);
    std::thread::spawn(move || {
        if waiting.wait_served() {
            greeted.update(|shown| shown.started = true);
        }
        running.wait();
    });

    let (account, accounts) = watch::channel(Account::default());
    let (keeper, wishes, claim_service): (Arc<dyn RecordKeeper>, _, ClaimService) = match &settings.record_folder {
        Some(folder) => {
            let keeper = Arc::new(FileKeeper::new(folder));
            let wishes = orders::from_folder(folder, settings.member);
            (keeper, wishes, Arc::new(|epoch| tracing::info!(epoch, "this member would be the Service's")))
        }
        None => {
            let clients = api::Clients::infer().await?;
            let keeper = Arc::new(KubernetesKeeper::new(&clients, &settings));
            let wishes = report::wishes(&clients, &settings);
            tokio::spawn(report::tell(clients.clone(), settings.clone(), Arc::clone(&shown), accounts));
            let (namespace, pair, member) = (settings.namespace.clone(), settings.pair.clone(), settings.member.name());
            let claim: ClaimService = Arc::new(move |epoch| {
                tokio::spawn(route::claim(clients.clone(), namespace.clone(), pair.clone(), member, epoch));
            });
            (keeper, wishes, claim)
        }
    };
    let mounted = settings.mount.clone();
    let mut terminate = signal(SignalKind::terminate()).map_err(on("handle SIGTERM"))?;
    let terminated = Box::pin(async move {
        terminate.recv().await;
    });
    let upkeep = Rhythm::default();
    let given =
        Given { settings, keeper, wishes, metrics, shown, account, claim_service, door, resumed, terminated, upkeep };
    let ended = conductor::run(given).await;
    if let Some(mount) = mounted {
        // Development: the process that mounted also unmounts. In a pod the mount outlives this process.
        if let Err(error) = transport::unmount_here(&mount) {
            tracing::warn!(%error, "the mount stays");
        }
    }
    match ended? {
        Exit::Released | Exit::Terminated => Ok(ExitCode::SUCCESS),
        Exit::DiskFailed => Ok(ExitCode::FAILURE),
    }
}

/// A file that an application holds open costs a descriptor here: as many as the container may have.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => tracing::debug!(descriptors = limit.maximum, "descriptors"),
        // It works with fewer: applications that open many files are told ENFILE sooner.
        Err(errno) => tracing::warn!(%errno, descriptors = limit.current, "the limit of descriptors stays as it is"),
    }
}

/// The application's mount, and whether a process that is gone has served it before.
fn mount(settings: &ServeSettings) -> Result<(Arc<Session>, bool), ServeError> {
    if let Some(inherited) = handover::descriptors_from_env().map_err(on("take over the mount"))? {
        let resumed = inherited.connection != Connection::Fresh;
        let session = Session::from_descriptors(inherited.devices, inherited.connection, inherited.keeper)
            .map_err(on("take over the mount"))?;
        return Ok((session, resumed));
    }
    let mount = settings.mount.as_ref().ok_or(ServeError::NoMount)?;
    Ok((transport::mount_here(mount).map_err(on("mount"))?, false))
}
