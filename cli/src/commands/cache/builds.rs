//! Layers that builds from recipes keep in the cache directory.

use super::{SECONDS_OF_A_DAY, size};
use crate::build::keep::{KeptLayer, between_builds, kept_layers};
use crate::report::{Report, utc};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// All of them, and the bytes that they take together.
pub(super) fn all(cache_dir: &Path) -> anyhow::Result<(Vec<KeptLayer>, u64)> {
    let kept = kept_layers(cache_dir)?;
    let bytes = kept.iter().map(|layer| layer.bytes).sum();
    Ok((kept, bytes))
}

/// When it was made, as listings have it.
pub(super) fn created(layer: &KeptLayer) -> String {
    let age = layer.made.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    utc(i64::try_from(age.as_secs()).unwrap_or(i64::MAX))
}

/// Removes those that were made before so many days, unless a build may be using them.
pub(super) fn clean(cache_dir: &Path, days: Option<u64>, dry_run: bool, report: Report) -> anyhow::Result<()> {
    let (kept, _) = all(cache_dir)?;
    if kept.is_empty() {
        return Ok(());
    }
    let Some(no_builds) = between_builds(cache_dir)? else {
        report.warning("layers that recipes keep are not removed: a build is under way");
        return Ok(());
    };
    let least = Duration::from_secs(days.unwrap_or(0).saturating_mul(SECONDS_OF_A_DAY));
    // A clock that was set back makes an entry new.
    let is_old = |layer: &&KeptLayer| SystemTime::now().duration_since(layer.made).unwrap_or_default() >= least;
    for layer in kept.iter().filter(is_old) {
        let (name, recipe, size) = (&layer.name, &layer.recipe, size(layer.bytes));
        report.info(format_args!("Removing build cache entry: {name} ({recipe}, {size})"));
        if !dry_run {
            no_builds.remove(layer)?;
        }
    }
    Ok(())
}
