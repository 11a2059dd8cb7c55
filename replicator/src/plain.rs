//! What holds a member back, for people: one plain word that tools can compare, and one sentence that says what to do.
//! The words are a promise (the operator and alerts match on them); the sentences are not.

use tandem_protocol::handshake::Refusal;
use tandem_protocol::identity::Quarantine;
use tandem_protocol::member::effect::{Reason, Snapshot};

/// A word and a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// One word, in CamelCase.
    pub reason: &'static str,
    /// One sentence.
    pub message: &'static str,
}

const fn said(reason: &'static str, message: &'static str) -> Said {
    Said { reason, message }
}

/// What holds this member back; `None`: nothing does.
pub fn held_back(snapshot: &Snapshot) -> Option<Said> {
    let graver = snapshot.reason.filter(|reason| !snapshot.pod_spent || is_graver_than_a_spent_pod(*reason));
    match graver {
        Some(reason) => Some(word(reason)),
        None if snapshot.pod_spent => Some(said(
            "PodSpent",
            "this pod's application saw an earlier reign of this member: the pod must be replaced before it may lead again",
        )),
        None => None,
    }
}

/// A new pod ends being spent and ends none of these.
fn is_graver_than_a_spent_pod(reason: Reason) -> bool {
    match reason {
        Reason::Quarantined(_)
        | Reason::RecordMissing
        | Reason::CertificateOfOtherData
        | Reason::Dirty
        | Reason::CopyIncomplete
        | Reason::PeerRefused(Refusal::TwoHistories | Refusal::OtherPair | Refusal::SameMember) => true,
        // The newer epoch that ended this pod's right to lead is what these speak of, or they pass by themselves.
        Reason::PeerRefused(Refusal::Protocol | Refusal::OldEpoch | Refusal::NotMaster)
        | Reason::RecordUnreachable
        | Reason::HeldTooLong
        | Reason::NominatedUncertified
        | Reason::NominationDeclined
        | Reason::CopyWaits => false,
    }
}

fn word(reason: Reason) -> Said {
    match reason {
        Reason::Quarantined(why) => quarantined(why),
        Reason::PeerRefused(why) => refused(why),
        Reason::RecordMissing => said(
            "RecordMissing",
            "the PairRecord does not exist, and nobody begins to lead without it: the operator makes it anew when both members are there",
        ),
        Reason::RecordUnreachable => {
            said("RecordUnreachable", "the API server does not answer: roles stay as they are until it does")
        }
        Reason::HeldTooLong => said(
            "HeldTooLong",
            "writes waited longer than holdSeconds and fail now: neither the peer nor the record can be reached",
        ),
        Reason::NominatedUncertified => said(
            "TargetDataIncomplete",
            "this member was nominated but does not hold every acknowledged write: let the copy or the catch-up finish first",
        ),
        Reason::NominationDeclined => {
            said("NominationDeclined", "the master could not hand over now: ask again when the pair is in sync")
        }
        Reason::CertificateOfOtherData => said(
            "DataReplaced",
            "the record certifies another volume of this member: bring that volume back, or let this one be copied from the peer",
        ),
        Reason::Dirty => said(
            "MemoryLost",
            "acknowledged writes were lost from memory in a crash: this member may lead again after it has followed its peer",
        ),
        Reason::CopyIncomplete => said(
            "CopyIncomplete",
            "a copy from the master was begun and not completed: it goes on when the master is there, and nothing can lead from it before",
        ),
        Reason::CopyWaits => said(
            "CopyWaits",
            "this member tried to take the lead and has no answer yet: what it lacks is copied once the record tells who leads",
        ),
    }
}

fn quarantined(why: Quarantine) -> Said {
    match why {
        Quarantine::ForeignData => said(
            "ForeignData",
            "the volume holds files that this pair did not write: empty it, or annotate the pair with tandem.dev/discard to move them aside",
        ),
        Quarantine::OtherPair => said(
            "OtherPair",
            "the volume belongs to another pair: attach the right one, or annotate the pair with tandem.dev/discard to move its files aside",
        ),
        Quarantine::OtherMember => said(
            "OtherMember",
            "the volume belongs to the other member of this pair: attach the right one to each, or annotate the pair with tandem.dev/discard",
        ),
        Quarantine::JournalCorrupt => said(
            "Corrupt",
            "the journal or the volume is damaged: check the disk, then annotate the pair with tandem.dev/discard to copy it from the peer",
        ),
        Quarantine::VolumeRolledBack => said(
            "RolledBack",
            "the volume is older than what this member acknowledged: bring the newer one back, or annotate the pair with tandem.dev/discard",
        ),
        Quarantine::RecordRolledBack => said(
            "RecordRolledBack",
            "the PairRecord is older than one this member has seen, as after a restore of etcd: let a human compare both members",
        ),
        Quarantine::TwoHistories => said(
            "Diverged",
            "one epoch has two histories: decide which member's writes stay and annotate the pair with tandem.dev/discard for the other",
        ),
        Quarantine::NeedsSpace => said(
            "NeedsSpace",
            "writes that only this member holds cannot be saved aside: make room on the volume, then annotate the pair with tandem.dev/discard",
        ),
    }
}

fn refused(why: Refusal) -> Said {
    match why {
        Refusal::Protocol => said(
            "PeerVersion",
            "the peer speaks another version of the protocol: bring both members to the same version",
        ),
        Refusal::OtherPair => {
            said("PeerOfOtherPair", "the peer belongs to another pair: look at the addresses and certificates of both")
        }
        Refusal::SameMember => {
            said("SameMember", "the peer claims to be this very member: look at the addresses and certificates of both")
        }
        Refusal::OldEpoch => said("OldEpoch", "the peer leads an epoch that is over and is about to learn it"),
        Refusal::TwoHistories => said(
            "Diverged",
            "one epoch has two histories: decide which member's writes stay and annotate the pair with tandem.dev/discard for the other",
        ),
        Refusal::NotMaster => {
            said("WaitingForMaster", "the peer does not lead yet: this member waits until somebody does")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_one_word_and_one_short_sentence() {
        let quarantines = [
            Quarantine::ForeignData,
            Quarantine::OtherPair,
            Quarantine::OtherMember,
            Quarantine::JournalCorrupt,
            Quarantine::VolumeRolledBack,
            Quarantine::RecordRolledBack,
            Quarantine::TwoHistories,
            Quarantine::NeedsSpace,
        ];
        let refusals = [
            Refusal::Protocol,
            Refusal::OtherPair,
            Refusal::SameMember,
            Refusal::OldEpoch,
            Refusal::TwoHistories,
            Refusal::NotMaster,
        ];
        let others = [
            Reason::RecordMissing,
            Reason::RecordUnreachable,
            Reason::HeldTooLong,
            Reason::NominatedUncertified,
            Reason::NominationDeclined,
            Reason::CertificateOfOtherData,
            Reason::Dirty,
            Reason::CopyIncomplete,
            Reason::CopyWaits,
        ];
        let quarantines = quarantines.into_iter().map(Reason::Quarantined);
        let refusals = refusals.into_iter().map(Reason::PeerRefused);
        for reason in quarantines.chain(refusals).chain(others) {
            let Said { reason: word, message } = word(reason);
            assert!(word.chars().all(|letter| letter.is_ascii_alphabetic()), "{word}");
            assert!(word.starts_with(|letter: char| letter.is_ascii_uppercase()), "{word}");
            assert!(message.len() <= 256 && !message.ends_with('.') && !message.contains(". "), "{message}");
        }
    }

    #[test]
    fn a_spent_pod_is_told_unless_something_is_worse() {
        let told = |reason| held_back(&Snapshot { pod_spent: true, reason, ..Snapshot::default() }).unwrap().reason;
        assert_eq!(told(None), "PodSpent");
        assert_eq!(told(Some(Reason::RecordUnreachable)), "PodSpent");
        assert_eq!(told(Some(Reason::Quarantined(Quarantine::TwoHistories))), "Diverged");
        assert_eq!(held_back(&Snapshot::default()), None);
    }
}
