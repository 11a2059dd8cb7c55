//! Makes the pair's authority and its members' certificates, and makes them anew in time.

use super::{ActError, MANAGER, api, create, doing};
use crate::certificates::{self, Pem};
use crate::clock;
use crate::context::Context;
use crate::desired::{Kind, Object, object};
use crate::pair::ValidPair;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use std::time::Duration;
use tandem_crds::v1alpha1::MemberName;

const LOOK_AGAIN: Duration = Duration::from_secs(3600);
/// ... and while a pod waits for something.
const LOOK_AGAIN_SOON: Duration = Duration::from_secs(10);

/// Makes what is missing or nearly over. Secrets are not watched: that would need the right to read all of them. So who
/// deletes one, to have it made anew, waits for as long as the next look; not when a pod cannot begin without it.
pub async fn ensure(context: &Context, pair: &ValidPair, a_pod_waits: bool) -> Result<(), ActError> {
    let path = format!("{}/keys/{}", pair.namespace, pair.uid);
    let patience = if a_pod_waits { LOOK_AGAIN_SOON } else { LOOK_AGAIN };
    let looked = context.applied.lock().get(&path).map(|(_, at)| *at);
    if looked.is_some_and(|at| clock::monotonic().saturating_duration_since(at) < patience) {
        return Ok(());
    }
    let now = clock::now();
    let (authority, is_new) = authority(context, pair).await?;
    for member in MemberName::BOTH {
        let name = pair.certificate_name(member);
        let secret = pair.member_secret(member);
        let there = read(context, pair, &secret).await?;
        let good = there.as_ref().is_some_and(|there| {
            text(there, "ca.crt") == authority.certificate
                && certificates::is_good(&text(there, "tls.crt"), Some(&name), now)
                && !text(there, "tls.key").is_empty()
        });
        if good && !is_new {
            continue;
        }
        let leaf = certificates::leaf(&authority, &name, now)?;
        let data = json!({"ca.crt": authority.certificate, "tls.crt": leaf.certificate, "tls.key": leaf.key});
        let wanted =
            object(pair, Kind::Secret, secret.clone(), Some(member), json!({"type": "Opaque", "stringData": data}));
        api(context, &pair.namespace, Kind::Secret)
            .patch(&secret, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&wanted.content))
            .await
            .map_err(doing(format!("write Secret {secret}")))?;
        tracing::info!(pair = pair.name, namespace = pair.namespace, %member, "made a certificate");
    }
    context.applied.lock().insert(path, (0, clock::monotonic()));
    Ok(())
}

/// The pair's authority, and whether it was made just now.
async fn authority(context: &Context, pair: &ValidPair) -> Result<(Pem, bool), ActError> {
    let name = pair.authority_secret();
    // Twice: somebody else may have created it in between.
    for _ in 0..2 {
        if let Some(there) = read(context, pair, &name).await? {
            let pem = Pem { certificate: text(&there, "ca.crt"), key: text(&there, "ca.key") };
            if certificates::is_good(&pem.certificate, None, clock::now()) && !pem.key.is_empty() {
                return Ok((pem, false));
            }
            tracing::warn!(pair = pair.name, namespace = pair.namespace, "the authority is no good: made anew");
            let pem = certificates::authority(&pair.name, clock::now())?;
            api(context, &pair.namespace, Kind::Secret)
                .patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&secret(pair, &pem).content))
                .await
                .map_err(doing(format!("write Secret {name}")))?;
            return Ok((pem, true));
        }
        let pem = certificates::authority(&pair.name, clock::now())?;
        if create(context, pair, &secret(pair, &pem)).await? {
            return Ok((pem, true));
        }
    }
    Err(doing(format!("read Secret {name}"))(kube::Error::Api(Box::default())))
}

fn secret(pair: &ValidPair, pem: &Pem) -> Object {
    let data = json!({"ca.crt": pem.certificate, "ca.key": pem.key});
    object(pair, Kind::Secret, pair.authority_secret(), None, json!({"type": "Opaque", "stringData": data}))
}

async fn read(context: &Context, pair: &ValidPair, name: &str) -> Result<Option<Secret>, ActError> {
    let secrets = Api::<Secret>::namespaced(context.client.clone(), &pair.namespace);
    secrets.get_opt(name).await.map_err(doing(format!("read Secret {name}")))
}

fn text(secret: &Secret, key: &str) -> String {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    bytes.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default()
}
