//! What a pair promises, played by two real processes.

#![allow(clippy::unwrap_used, clippy::panic)] // a test says what it expects by panicking

mod harness;

use std::fs;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use harness::{Pair, append, judge};
use serde_json::{Value, json};
use tandem_protocol::identity::MemberName;
use tandem_replicator::checkpoint;
use tandem_replicator::volume::FOLDER;

#[test]
fn a_pair_is_founded_copied_and_taken_over() {
    let mut pair = Pair::new();
    pair.start("a");
    pair.wait_serving("a");
    let log = pair.mount("a").join("log");
    let mut acknowledged = append(&log, 0, 50);
    pair.start("b");
    pair.wait_in_sync("a");
    acknowledged = append(&log, acknowledged, 200);
    assert_eq!(acknowledged, 250);

    // The master dies: the other has every acknowledged write.
    pair.kill("a");
    pair.wait_serving("b");
    let log = pair.mount("b").join("log");
    judge(&log, acknowledged);
    acknowledged = append(&log, acknowledged, 100);
    assert_eq!(acknowledged, 350);

    // The first returns as replicant, and is brought home.
    pair.start("a");
    pair.wait_in_sync("b");
    acknowledged = append(&log, acknowledged, 50);
    pair.stop("b");
    pair.wait_serving("a");
    judge(&pair.mount("a").join("log"), acknowledged);
    pair.start("b");
    pair.wait_in_sync("a");
    pair.stop("a");
    pair.stop("b");
    // Plain files, on both volumes.
    for member in ["a", "b"] {
        judge(&pair.volume(member).join("log"), acknowledged);
    }
}

#[test]
fn a_replicant_that_was_away_catches_up() {
    let mut pair = Pair::new();
    pair.start("a");
    pair.start("b");
    pair.wait_in_sync("a");
    let log = pair.mount("a").join("log");
    let acknowledged = append(&log, 0, 20);
    pair.kill("b");
    // The master goes on alone once the record says so.
    let acknowledged = append(&log, acknowledged, 100);
    assert_eq!(acknowledged, 120);
    // What is shown follows what is done, a little later.
    let above = |name, least| pair.metric("a", name).is_some_and(|value| value >= least);
    pair.wait("the metrics of a master that is alone", || {
        above("tandem_sync_seconds_count", 120.0)
            && above("tandem_sync_seconds_sum", f64::MIN_POSITIVE)
            && above("tandem_acknowledged_operations_total", 120.0)
            && above("tandem_lag_bytes", 1.0)
            && pair.metric("a", "tandem_epoch") == Some(1.0)
            && pair.metric("a", "tandem_state{state=\"PrimaryAlone\"}") == Some(1.0)
    });
    assert!(pair.record().certified.is_only(MemberName::A));
    pair.start("b");
    pair.wait_in_sync("a");
    pair.wait("the metrics of both", || {
        pair.metric("a", "tandem_lag_bytes") == Some(0.0)
            && pair.metric("b", "tandem_position{rung=\"durable\"}")
                == pair.metric("a", "tandem_position{rung=\"peer_durable\"}")
    });
    pair.kill("a");
    pair.wait_serving("b");
    judge(&pair.mount("b").join("log"), acknowledged);
}

/// Also when nobody writes any more, so that no further checkpoint is taken.
#[test]
fn what_was_kept_for_a_replicant_goes_when_it_has_caught_up() {
    let mut pair = Pair::new();
    pair.start("a");
    pair.start("b");
    pair.wait_in_sync("a");
    pair.stop("b");
    pair.wait("the master to go on alone", || pair.shown("a")["state"] == "PrimaryAlone");
    let number = |name: &str| pair.shown("a")[name].as_u64();
    let mut before = None;
    pair.wait("a master that says where its journal ends", || {
        before = number("journaled");
        before.is_some()
    });
    let before = before.unwrap();
    let mut file = fs::File::create(pair.mount("a").join("large")).unwrap();
    for _ in 0..96 {
        file.write_all(&vec![7; 1 << 20]).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    pair.wait("a checkpoint of everything", || {
        let checkpoint = checkpoint::read(&pair.volume("a").join(FOLDER)).unwrap().unwrap().position().unwrap().seq;
        checkpoint >= before + 96 && number("journaled").is_some_and(|end| end <= checkpoint)
    });
    pair.wait("what is kept", || number("trimmed").is_some_and(|trimmed| trimmed <= before));
    pair.start("b");
    pair.wait_in_sync("a");
    let number = |name: &str| pair.shown("a")[name].as_u64();
    pair.wait("the journal to forget", || number("trimmed").is_some_and(|trimmed| trimmed > before));
}

#[test]
fn a_copy_is_told_and_what_is_caught_up_later_is_none() {
    let mut pair = Pair::new();
    pair.start("a");
    pair.wait_serving("a");
    let log = pair.mount("a").join("log");
    let acknowledged = append(&log, 0, 20);
    pair.start("b");
    pair.wait_in_sync("a");
    pair.wait("the copy to be told as complete", || pair.shown("a")["netcopy"]["phase"] == "Completed");
    let copy = pair.shown("a")["netcopy"].clone();
    assert_eq!((&copy["bytesDone"], &copy["failures"]), (&copy["bytesTotal"], &json!(0)), "{copy}");
    assert!(copy["startedAt"].is_string() && copy["finishedAt"].is_string(), "{copy}");
    assert_eq!(pair.shown("b")["netcopy"], Value::Null, "a follower tells of no copy");

    pair.kill("b");
    let acknowledged = append(&log, acknowledged, 20);
    pair.start("b");
    pair.wait_in_sync("a");
    assert_eq!(pair.shown("a")["netcopy"], copy, "a catch-up is no copy");

    // Both lose their processes: the master goes on telling what it told.
    pair.kill("b");
    pair.kill("a");
    pair.start("a");
    pair.wait_serving("a");
    pair.wait("the copy to be told again", || pair.shown("a")["netcopy"] == copy);
    judge(&log, acknowledged);
}

#[test]
fn a_copy_that_does_not_move_is_given_up_and_begun_again() {
    let mut pair = Pair::new();
    // Silence alone would end it after four seconds.
    pair.wish("a", json!({"settings": {"interval": 2000}, "stall_timeout_milliseconds": 300}));
    let piece = vec![7; 1 << 20];
    let mut file = fs::File::create(pair.volume("a").join("large")).unwrap();
    for _ in 0..400 {
        file.write_all(&piece).unwrap();
    }
    pair.start("a");
    pair.wait_serving("a");
    pair.start("b");
    pair.wait("the copy to move", || pair.shown("a")["netcopy"]["bytesDone"].as_i64().unwrap_or(0) > 0);
    let first = pair.shown("a")["netcopy"].clone();
    assert_eq!((&first["phase"], &first["bytesTotal"]), (&json!("Copying"), &json!(400 << 20)), "{first}");
    pair.signal("b", "STOP");
    pair.wait("the copy to be given up", || pair.shown("a")["netcopy"]["phase"] == "Failed");
    let failed = pair.shown("a")["netcopy"].clone();
    assert_eq!((&failed["id"], &failed["failures"]), (&first["id"], &json!(1)));
    assert!(failed["message"].as_str().unwrap().starts_with("not a byte moved"), "{failed}");
    pair.signal("b", "CONT");
    pair.wait_in_sync("a");
    pair.wait("the next copy to be complete", || pair.shown("a")["netcopy"]["phase"] == "Completed");
    let second = pair.shown("a")["netcopy"].clone();
    assert_ne!(second["id"], first["id"]);
    assert_eq!(second["failures"], 0);
}

#[test]
fn two_copies_or_none_from_the_first_moment() {
    let mut pair = Pair::new();
    for member in ["a", "b"] {
        pair.wish(member, json!({"settings": {"protection": "MaxProtection"}}));
    }
    fs::write(pair.volume("a").join("old"), "there before").unwrap();
    pair.start("a");
    pair.wait("the founder to wait for its peer", || pair.shown("a")["state"] == "PrimaryUncertain");
    assert_eq!(pair.shown("a")["serving"], false);
    pair.start("b");
    pair.wait_in_sync("a");
    assert_eq!(append(&pair.mount("a").join("log"), 0, 20), 20);
    // More than a member may lack when it is taken in again: the one that comes back must say that it lacks nothing.
    let mut many = fs::File::create(pair.mount("a").join("many")).unwrap();
    for _ in 0..5_000 {
        many.write_all(b"a line\n").unwrap();
    }
    many.sync_all().unwrap();
    drop(many);
    pair.kill("a");
    // Nobody serves until there are two again.
    pair.start("a");
    pair.wait("somebody to lead a pair in sync", || {
        ["a", "b"].iter().any(|member| pair.shown(member)["state"] == "PrimaryActive")
    });
}

#[test]
fn a_replicant_that_ends_in_order_is_not_waited_for() {
    let mut pair = Pair::new();
    // By silence it would be missed after minutes, and be taken in again after more of them.
    let slow = json!({"settings": {"interval": 60_000, "stable": 600_000, "active_minimum": 600_000}});
    for member in ["a", "b"] {
        pair.wish(member, slow.clone());
        pair.start(member);
    }
    pair.wait_in_sync("a");
    assert_eq!(append(&pair.mount("a").join("log"), 0, 20), 20);
    pair.stop("b");
    pair.wait("a to go on alone", || pair.shown("a")["state"] == "PrimaryAlone");
    assert_eq!(append(&pair.mount("a").join("log"), 20, 20), 40);
    pair.start("b");
    pair.wait_in_sync("a");
    // What it holds in its journal it shows soon, and not at once.
    let told = |root: std::path::PathBuf| fs::read_to_string(root.join("log")).unwrap();
    pair.wait("b to show what it holds", || told(pair.volume("b")) == told(pair.mount("a")));
    judge(&pair.volume("b").join("log"), 40);
}

#[test]
fn a_writer_is_not_far_ahead_of_a_replicant_that_stands_still() {
    let mut pair = Pair::new();
    // By silence it would be given up after minutes.
    for member in ["a", "b"] {
        pair.wish(member, json!({"settings": {"interval": 60_000}}));
        pair.start(member);
    }
    pair.wait_in_sync("a");
    pair.signal("b", "STOP");
    let written = Arc::new(AtomicU64::new(0));
    let (path, count) = (pair.mount("a").join("large"), Arc::clone(&written));
    let writer = thread::spawn(move || {
        let mut file = fs::File::create(path).unwrap();
        for number in 0..300_u16 {
            file.write_all(&vec![(number % 251) as u8; 1 << 20]).unwrap();
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let paced = |least| pair.metric("a", "tandem_paced_writes_total").is_some_and(|count| count >= least);
    pair.wait("the writer to be held up", || paced(1.0));
    let ahead = written.load(Ordering::Relaxed);
    assert!((100..=130).contains(&ahead), "{ahead} MiB ahead");
    // A moment for each write, not for ever.
    pair.wait("the writer to go on slowly", || paced(3.0));
    assert!(written.load(Ordering::Relaxed) < 150);
    assert_eq!(pair.shown("a")["state"], "PrimaryActive");
    pair.signal("b", "CONT");
    writer.join().unwrap();
    fs::File::open(pair.mount("a").join("large")).unwrap().sync_all().unwrap();
    // An fsync is counted as one, a write that was held up is not.
    assert_eq!(pair.metric("a", "tandem_sync_seconds_count"), Some(1.0));
    assert_eq!(pair.shown("a")["state"], "PrimaryActive");
    let held = |member: &str| fs::read(pair.volume(member).join("large")).unwrap();
    pair.wait("b to show what it holds", || held("b") == held("a"));
}

#[test]
fn an_order_is_carried_out_once_and_answered() {
    // A volume that belongs to another pair, journal and all.
    let mut other = Pair::new();
    other.start("a");
    other.start("b");
    other.wait_in_sync("a");
    assert_eq!(append(&other.mount("a").join("other"), 0, 30), 30);
    other.stop("a");
    other.stop("b");
    let mut pair = Pair::new();
    fs::remove_dir(pair.volume("b")).unwrap();
    fs::rename(other.volume("b"), pair.volume("b")).unwrap();
    pair.start("a");
    pair.start("b");
    pair.wait("the volume to be known as another pair's", || pair.shown("b")["reason"] == "OtherPair");
    assert_eq!(pair.shown("b")["state"], "Quarantined");
    assert_eq!(append(&pair.mount("a").join("log"), 0, 20), 20);
    pair.wish("b", json!({"discard": ["one"], "resync": ["early"]}));
    pair.wait_in_sync("a");
    let outcome = |pair: &Pair, token: &str| {
        let told = pair.shown("b")["handledOrders"].as_array().cloned().unwrap_or_default();
        told.into_iter().find(|told| told["token"] == token).map(|told| (told["done"] == true, told["reason"].clone()))
    };
    pair.wait("both answers", || {
        outcome(&pair, "one") == Some((true, json!("Discarded")))
            && outcome(&pair, "early") == Some((true, json!("Copied")))
    });
    let aside: Vec<_> = fs::read_dir(pair.volume("b").join(".tandem/aside")).unwrap().collect();
    assert_eq!(aside.len(), 1, "what was given up was kept");
    assert_eq!(append(&pair.mount("a").join("log"), 20, 20), 40);

    // A comparison is a copy of its own, made once.
    let copy = pair.shown("a")["netcopy"]["id"].clone();
    pair.wish("b", json!({"discard": ["one"], "resync": ["early", "now"]}));
    pair.wait("the comparison", || outcome(&pair, "now") == Some((true, json!("Copied"))));
    pair.wait("the copy to be told by the master too", || {
        let told = pair.shown("a")["netcopy"].clone();
        told["id"] != copy && told["phase"] == "Completed"
    });
    pair.wait_in_sync("a");
    let second = pair.shown("a")["netcopy"]["id"].clone();
    pair.kill("b");
    pair.start("b");
    pair.wait_in_sync("a");
    pair.wait("the answers to be told again", || outcome(&pair, "now") == Some((true, json!("Copied"))));
    assert_eq!(pair.shown("a")["netcopy"]["id"], second, "a token acted twice");
    assert_eq!(append(&pair.mount("a").join("log"), 40, 20), 60);

    // Held, it claims nothing, over a restart too; then it has everything that was written since it began anew.
    pair.wish("b", json!({"hold": ["still"]}));
    pair.wait("the order to hold", || outcome(&pair, "still") == Some((true, json!("Held"))));
    pair.kill("b");
    pair.start("b");
    pair.wait_in_sync("a");
    pair.kill("a");
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(pair.record().epoch, 1, "it claimed although it was to hold");
    pair.wish("b", json!({}));
    pair.wait_serving("b");
    judge(&pair.mount("b").join("log"), 60);
}

#[test]
fn a_nomination_is_answered_when_it_was_carried_out_and_when_it_cannot_be() {
    let mut pair = Pair::new();
    pair.start("a");
    pair.start("b");
    pair.wait_in_sync("a");
    let acknowledged = append(&pair.mount("a").join("log"), 0, 20);
    pair.wish("b", json!({"nomination": [{"id": "over", "to": "b"}, 0]}));
    pair.wait("a void one to be answered", || pair.shown("b")["handledNomination"] == "over");
    assert_eq!(pair.record().epoch, 1);
    pair.wish("b", json!({"nomination": [{"id": "go", "to": "b"}, 1]}));
    pair.wait_serving("b");
    pair.wait("the other to be answered", || pair.shown("b")["handledNomination"] == "go");
    assert_eq!(pair.record().last_request.as_deref(), Some("go"));
    judge(&pair.mount("b").join("log"), acknowledged);
}

#[test]
fn a_peer_whose_memory_suffices_takes_over_with_everything() {
    let mut pair = Pair::new();
    for member in ["a", "b"] {
        pair.wish(member, json!({"settings": {"ack_policy": "Received"}}));
    }
    pair.start("a");
    pair.start("b");
    pair.wait_in_sync("a");
    // The next connection may acknowledge from memory: the first one began before the peer was certified.
    pair.kill("b");
    pair.start("b");
    pair.wait_in_sync("a");
    let acknowledged = append(&pair.mount("a").join("log"), 0, 300);
    assert_eq!(acknowledged, 300);
    pair.kill("a");
    pair.wait_serving("b");
    judge(&pair.mount("b").join("log"), acknowledged);
}
