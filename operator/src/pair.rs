//! A pair whose settings were checked: what later steps need is there, and they need not ask again.

use serde_json::{Map, Value};
use tandem_crds::v1alpha1::{MemberName, ReplicationPairSpec, ServicePort};

/// Prefix of all labels and annotations of ours.
pub const PREFIX: &str = "tandem.dev/";
/// Label: name of the pair.
pub const PAIR: &str = "tandem.dev/pair";
/// Label: which member.
pub const MEMBER: &str = "tandem.dev/member";
/// Annotation of the read/write Service: the epoch for which its selector holds.
pub const EPOCH: &str = "tandem.dev/epoch";
/// Annotation of claims: the identity of the pair whose data they hold.
pub const PAIR_ID: &str = "tandem.dev/pair-id";
/// Label and value of everything that this operator makes.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "tandem");

/// One value per member.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PerMember<T> {
    /// Of member a.
    pub a: T,
    /// Of member b.
    pub b: T,
}

impl<T> PerMember<T> {
    /// One value each.
    pub fn make(mut of: impl FnMut(MemberName) -> T) -> Self {
        Self { a: of(MemberName::A), b: of(MemberName::B) }
    }

    /// The value of one.
    pub fn get(&self, member: MemberName) -> &T {
        match member {
            MemberName::A => &self.a,
            MemberName::B => &self.b,
        }
    }

    /// Both, with their names.
    pub fn each(&self) -> [(MemberName, &T); 2] {
        [(MemberName::A, &self.a), (MemberName::B, &self.b)]
    }
}

/// A pair that can be made.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidPair {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Unique id of the object.
    pub uid: String,
    /// Generation of the spec.
    pub generation: i64,
    /// What the user wrote, defaults filled in.
    pub spec: ReplicationPairSpec,
    /// The member whose files found the pair.
    pub founder: MemberName,
    /// Metadata of the pods, as written: labels and annotations.
    pub pod_metadata: Map<String, Value>,
    /// Spec of the pods, as written.
    pub pod_spec: Map<String, Value>,
    /// Ports of the read/write Service.
    pub ports: Vec<ServicePort>,
    /// What is asked for by annotation.
    pub requests: Vec<Asked>,
}

/// A request by annotation, as it stands on the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// As in `tandem.dev/<verb>`; cut to what the status holds.
    pub verb: String,
    /// The user's token.
    pub token: String,
}

impl ValidPair {
    /// `<pair>-<member>`: name of a member's objects.
    pub fn member_object(&self, member: MemberName) -> String {
        format!("{}-{member}", self.name)
    }

    /// Name of a member's pod.
    pub fn pod(&self, member: MemberName) -> String {
        format!("{}-{member}-0", self.name)
    }

    /// Name of a member's claim.
    pub fn claim(&self, member: MemberName) -> String {
        format!("tandem-backing-{}-{member}-0", self.name)
    }

    /// Name of the Secret with a member's certificate.
    pub fn member_secret(&self, member: MemberName) -> String {
        format!("{}-{member}-tls", self.name)
    }

    /// Name of the Secret with the pair's own certificate authority.
    pub fn authority_secret(&self) -> String {
        format!("{}-ca", self.name)
    }

    /// Whether a member may ever lead.
    pub fn electable(&self, member: MemberName) -> bool {
        self.spec.members.get(member).and_then(|told| told.electable).unwrap_or(true)
    }

    /// The name in a member's certificate.
    pub fn certificate_name(&self, member: MemberName) -> String {
        format!("{member}.{}.{}.pair.tandem.dev", self.name, self.namespace)
    }
}
