//! Plays the node plugin for a supervised member: its mount outlives every process that serves it.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recvmsg, sendmsg, socket_with,
};
use tandem_replicator::capture::transport;

use super::Pair;

/// Mounts, keeps a duplicate of every descriptor and what was agreed with the kernel.
pub(crate) fn plugin(socket: &Path, mount: &Path) {
    let (devices, _) = transport::mount_descriptors(mount, 4).unwrap();
    let door = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    bind(&door, &SocketAddrUnix::new(socket).unwrap()).unwrap();
    listen(&door, 4).unwrap();
    std::thread::spawn(move || {
        let mut agreed = None;
        while let Ok(asking) = accept_with(&door, SocketFlags::CLOEXEC) {
            serve(&asking, &devices, &mut agreed);
        }
    });
}

fn serve(asking: &OwnedFd, devices: &[OwnedFd], agreed: &mut Option<String>) {
    loop {
        let mut text = [0; 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(asking, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let Some(length) = received.ok().map(|received| received.bytes).filter(|length| *length > 0) else { return };
        let asked = String::from_utf8_lossy(&text[..length]).into_owned();
        match asked.split_once(' ') {
            None if asked == "get" => {
                let answer = agreed.as_ref().map_or("fresh -".to_owned(), |agreed| format!("resumed {agreed}"));
                tell(asking, &answer, &devices.iter().map(AsFd::as_fd).collect::<Vec<_>>());
            }
            Some(("agreed" | "adopt", now)) => {
                *agreed = Some(now.to_owned());
                tell(asking, "ok", &[]);
            }
            _ => panic!("asked for {asked:?}"),
        }
    }
}

fn tell(asking: &OwnedFd, answer: &str, devices: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(devices.is_empty() || control.push(SendAncillaryMessage::ScmRights(devices)));
    sendmsg(asking, &[IoSlice::new(answer.as_bytes())], &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// Kills the process that serves, as its supervisor sees it.
pub(crate) fn kill_daemon(pair: &mut Pair, member: &str) {
    let daemons = pair.children(member);
    assert_eq!(daemons.len(), 1, "one daemon at a time");
    assert!(Command::new("kill").args(["-s", "KILL", &daemons[0]]).status().unwrap().success());
}
