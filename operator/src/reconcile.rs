//! One turn for one pair, as a table of contents.

use crate::act::{ActError, Acted, act};
use crate::clock;
use crate::context::Context;
use crate::decide::decide;
use crate::observe::observe;
use crate::status::{self, StatusError};
use crate::validate::validate;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use std::sync::Arc;
use std::time::Duration;
use tandem_crds::v1alpha1::{ManagementState, ReplicationPair};

/// Why a turn did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Looking failed.
    #[error("observe: {0}")]
    Observe(#[source] Box<kube::Error>),
    /// Acting failed.
    #[error(transparent)]
    Act(#[from] ActError),
    /// Telling failed.
    #[error(transparent)]
    Status(#[from] StatusError),
}

/// One turn.
pub async fn reconcile(object: Arc<ReplicationPair>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    // Everything that goes with the pair goes by ownership; data stays or goes with its claims.
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let object = context.newest(object);
    let pair = match validate(&object) {
        Ok(pair) => pair,
        Err(refusal) => {
            status::refuse(&context, &object, &refusal).await?;
            return Ok(Action::await_change());
        }
    };
    let seen = observe(&context, &object, &pair).await.map_err(|error| ReconcileError::Observe(Box::new(error)))?;
    let plan = decide(&pair, &seen, clock::now());
    let acted = match pair.spec.management_state {
        ManagementState::Automatic => act(&context, &pair, &seen, &plan).await,
        ManagementState::ObserveOnly => Ok(Acted::default()),
    };
    let failed = acted.as_ref().err().map(ToString::to_string);
    status::write(&context, &object, &pair, &plan, acted.as_ref().ok(), failed.as_deref()).await?;
    acted?;
    context.failures.lock().remove(&key(&object));
    context.health.reconciled(true);
    Ok(Action::requeue(plan.look_again))
}

fn key(object: &ReplicationPair) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// When to try again: soon at first, then ever more rarely. Each pair has a patience of its own.
pub fn after_failure(object: Arc<ReplicationPair>, error: &ReconcileError, context: Arc<Context>) -> Action {
    let key = key(&object);
    let failures = {
        let mut failures = context.failures.lock();
        let count = failures.entry(key.clone()).or_insert(0);
        *count = count.saturating_add(1);
        *count
    };
    context.health.reconciled(false);
    let again = Duration::from_millis(500) * 2_u32.saturating_pow(failures.min(7) - 1);
    tracing::warn!(namespace = key.0, pair = key.1, %error, failures, "not done; trying again");
    Action::requeue(again)
}
