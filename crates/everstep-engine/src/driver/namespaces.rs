//! What this node knows of namespaces: that they are there, and what they set for the runs that start.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::Duration;

use everstep_core::StartDefaults;
use everstep_store::NamespaceSettings;
use tokio::time::Instant;

use super::Shared;
use crate::Error;

/// What a namespace sets is looked at again after this long: it may have been changed through another node.
const AGE_MAX: Duration = Duration::from_secs(5);

/// Namespaces that were met, with what each set, and when that was looked up.
pub(super) type Seen = HashMap<String, (NamespaceSettings, Instant)>;

impl Shared {
    /// Namespaces are never deleted, so what was seen once stays true.
    pub(super) async fn check_namespace(&self, name: &str) -> Result<(), Error> {
        if self.namespaces.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name) {
            return Ok(());
        }
        self.look_up(name).await.map(drop)
    }

    /// What runs of a namespace get that start now. One start looks for something new, and the others go on with what
    /// was there before.
    pub(super) async fn defaults_of(&self, name: &str) -> Result<StartDefaults, Error> {
        let (known, stale) = {
            let mut namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
            match namespaces.get_mut(name) {
                Some((settings, at)) => {
                    let stale = at.elapsed() >= AGE_MAX;
                    if stale {
                        *at = Instant::now();
                    }
                    (Some(settings.clone()), stale)
                }
                None => (None, true),
            }
        };
        let settings = match known {
            Some(settings) if !stale => settings,
            // A store that cannot be read now will say so to the start itself.
            Some(settings) => self.look_up(name).await.unwrap_or(settings),
            None => self.look_up(name).await?,
        };
        let NamespaceSettings { step_retry, run_retry, run_timeout } = settings;
        Ok(StartDefaults { step_retry, run_retry, run_timeout })
    }

    async fn look_up(&self, name: &str) -> Result<NamespaceSettings, Error> {
        let found = self.store.get_namespace(name).await?;
        let settings = found.ok_or_else(|| Error::NamespaceNotFound(name.to_owned()))?.settings;
        let seen = (settings.clone(), Instant::now());
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), seen);
        Ok(settings)
    }

    /// What a namespace sets was changed through this node: the next start looks it up.
    pub(crate) fn forget_namespace(&self, name: &str) {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}
