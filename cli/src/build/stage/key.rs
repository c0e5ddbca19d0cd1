//! What the sections of a stage depend on.

use super::{Builder, Built, find};
use crate::build::definition::{Stage, Transfer};
use crate::build::keep::Key;
use crate::build::{apps, copy};
use anyhow::Context;

impl Builder<'_> {
    /// What everything before `%post` depends on. Nothing where that cannot be known: `%setup` may do anything.
    pub(super) fn before_post_key(
        &self,
        start: Option<Key>,
        stage: &Stage,
        earlier: &[Built],
    ) -> anyhow::Result<Option<Key>> {
        let Some(mut key) = start else { return Ok(None) };
        if self.settings.no_cache || (!stage.setup.is_empty() && self.settings.sections.has("setup")) {
            return Ok(None);
        }
        let apps: Vec<_> = stage.apps.iter().map(apps::App::from).collect();
        key = key.and(serde_json::to_vec(&apps)?);
        if self.settings.sections.has("files") {
            for files in &stage.files {
                key = key.and(files.from.as_deref().unwrap_or_default());
                if let Some(from) = &files.from {
                    let Some(other) = find(earlier, from)?.key.clone() else { return Ok(None) };
                    key = key.and(other);
                }
                for transfer in &files.transfers {
                    key = key.and(&transfer.source).and(&transfer.destination);
                    if files.from.is_none() {
                        digest(transfer, &mut key)?;
                    }
                }
            }
        }
        for transfer in stage.apps.iter().flat_map(|app| &app.files) {
            digest(transfer, &mut key)?;
        }
        Ok(Some(key))
    }
}

/// What a line of `%files` copies, into the digest.
fn digest(transfer: &Transfer, key: &mut Key) -> anyhow::Result<()> {
    for source in copy::sources_on_host(transfer)? {
        key.update(source.as_os_str().as_encoded_bytes());
        copy::digest(&source, &mut |part| key.update(part), 0)
            .with_context(|| format!("cannot read {}", source.display()))?;
    }
    Ok(())
}
