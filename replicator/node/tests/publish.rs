//! Volumes come and go in a kubelet's directory of our own. Needs root and `/dev/fuse`, no cluster.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by panicking, also in its helpers")]

use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::path::Path;
use tandem_node::mounts::mounted_at;
use tandem_node::volumes::{Pod, Presence, Publication, Role, Volumes};

fn ask(socket: &OwnedFd, text: &str, devices: &[OwnedFd]) -> (String, Vec<OwnedFd>) {
    let borrowed: Vec<_> = devices.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(borrowed.is_empty() || control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    sendmsg(socket, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL).unwrap();
    let mut answer = [0; 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut answer)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut devices = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            devices.extend(rights);
        }
    }
    (String::from_utf8(answer[..received.bytes].to_vec()).unwrap(), devices)
}

fn dial(path: &Path) -> OwnedFd {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

#[test]
fn a_volume_survives_a_restart_of_the_plugin_and_leaves_nothing_behind() {
    let kubelet = tempfile::tempdir().unwrap();
    let plugin = kubelet.path().join("plugins/tandem.dev");
    let place = kubelet.path().join("pods/uid-1/volumes");
    std::fs::create_dir_all(&place).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let open =
        |runtime: &tokio::runtime::Runtime| Volumes::open(&plugin, kubelet.path(), runtime.handle().clone()).unwrap();
    let wanted = |volume: &str, role| Publication {
        volume: volume.to_owned(),
        role,
        pod: Pod { namespace: "n".to_owned(), name: "p".to_owned(), uid: "uid-1".to_owned() },
        target: place.join(volume),
    };
    let (data, control) = (wanted("csi-data", Role::Data), wanted("csi-control", Role::Control));

    let volumes = open(&runtime);
    for publication in [&data, &control, &data, &control] {
        volumes.publish(publication).unwrap();
    }
    assert!(volumes.publish(&wanted("csi-second", Role::Data)).is_err(), "one data volume per pod");
    let outside = Publication { target: kubelet.path().join("pods/../elsewhere"), ..data.clone() };
    assert!(volumes.publish(&outside).is_err(), "only below kubelet's pods");
    assert_eq!(mounted_at(&data.target).unwrap().unwrap().kind, "fuse.tandem");
    assert!(std::fs::write(control.target.join("x"), b"").is_err(), "the pod can change nothing there");

    let socket = dial(&control.target.join("plugin.sock"));
    let (answer, devices) = ask(&socket, "get", &[]);
    assert_eq!((answer.as_str(), devices.len()), ("fresh -", 4));
    assert_eq!(ask(&socket, "agreed 0102", &[]).0, "ok");
    assert!(ask(&socket, "nonsense", &[]).0.starts_with("refused"));
    assert!(matches!(volumes.seen()[0].presence, Presence::Here(_)));

    // The plugin dies and comes again.
    drop((volumes, socket));
    runtime.shutdown_background();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let volumes = open(&runtime);
    volumes.publish(&data).unwrap();
    let socket = dial(&control.target.join("plugin.sock"));
    let foreign = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    assert!(ask(&socket, "adopt 0102", &[foreign]).0.starts_with("refused"));
    assert_eq!(ask(&socket, "adopt 0102", &devices).0, "ok");
    let (answer, again) = ask(&socket, "get", &[]);
    assert_eq!((answer.as_str(), again.len()), ("resumed 0102", 4));

    // A connection that was ended is ended once; the next mount may be given its number, and is another one.
    assert!(!volumes.seen()[0].ended);
    let minor = volumes.seen()[0].minor;
    volumes.let_go(&data.volume, minor + 1);
    assert!(!volumes.seen()[0].ended, "that was another mount");
    volumes.let_go(&data.volume, minor);
    assert!(volumes.seen()[0].ended);
    drop((devices, again));
    assert_eq!(ask(&socket, "get", &[]).0, "fresh -");
    assert!(!volumes.seen()[0].ended);

    for publication in [&control, &data, &data] {
        volumes.unpublish(&publication.volume, &publication.target).unwrap();
        assert!(mounted_at(&publication.target).unwrap().is_none());
        assert!(!publication.target.exists());
    }
    for directory in ["state", "pods"] {
        assert_eq!(std::fs::read_dir(plugin.join(directory)).unwrap().count(), 0, "{directory}");
    }
}
