//! Where state lies, and what all verbs share.

use super::{Environment, SettingsError, size};
use crate::args::{DaemonFlags, EngineArg};
use clap::ValueEnum;
use std::path::PathBuf;
use std::time::Duration;

/// How long a daemon without clients stays, for the next run to find it.
const DEFAULT_IDLE: Duration = Duration::from_secs(60);
/// Five eighths are for file content, in blocks of up to 1 MiB; without room for one, each is decoded for every read.
const MIN_CACHE_BYTES: u64 = 2 << 20;
/// Variables that name a batch job. A scheduler kills what a job started, so a daemon belongs to one job.
const JOB_VARIABLES: [&str; 6] =
    ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID", "COBALT_JOBID", "OAR_JOB_ID"];

/// Where state lies and what all verbs share.
#[derive(Debug, Clone)]
pub struct Common {
    /// Where daemons keep their sockets: `SIPHON_RUNTIME_DIR` if set.
    pub runtime_dir: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`, used if it is ours.
    pub xdg_runtime_dir: Option<PathBuf>,
    /// Where instances are written down: `*_CONFIGDIR/siphon` if set, else `$XDG_STATE_HOME/siphon`.
    pub state_dir: Option<PathBuf>,
    /// Where remote bytes are kept: `*_CACHEDIR/siphon`, else `$XDG_CACHE_HOME/siphon`, else `~/.cache/siphon`.
    pub cache_dir: Option<PathBuf>,
    /// Bytes of decoded content to keep at most: `--block-cache`, else `SIPHON_BLOCK_CACHE`.
    pub cache_bytes: Option<u64>,
    /// Bytes of remote images to keep at most: `SIPHON_CACHE_LIMIT`, else what was set before.
    pub cache_limit: Option<u64>,
    /// Who merges an image and its layer: `--layer-engine`, else `SIPHON_LAYER_ENGINE`, else whichever suits.
    pub layer_engine: EngineArg,
    /// How long a daemon without clients stays: `SIPHON_IDLE_SECONDS`, 60 unless set.
    pub idle: Duration,
    /// Whether the limits that the command line asks for hold already.
    pub limited: bool,
    /// The batch job, or `login`.
    pub scope: String,
}

impl Common {
    /// Reads the environment, and the flags of a command that may start a daemon.
    ///
    /// # Errors
    /// [`SettingsError::CacheSize`], [`SettingsError::Engine`].
    pub fn resolve(flags: Option<&DaemonFlags>, environment: &Environment) -> Result<Self, SettingsError> {
        let cache_dir = environment
            .setting(&["CACHEDIR"])
            .or_else(|| environment.get("XDG_CACHE_HOME"))
            .map(|dir| PathBuf::from(dir).join("siphon"));
        let state_dir = environment
            .setting(&["CONFIGDIR"])
            .or_else(|| environment.get("XDG_STATE_HOME"))
            .map(|dir| PathBuf::from(dir).join("siphon"));
        let idle = environment
            .get("SIPHON_IDLE_SECONDS")
            .and_then(|text| text.to_str()?.parse().ok())
            .map_or(DEFAULT_IDLE, Duration::from_secs);
        let job = JOB_VARIABLES.iter().find_map(|name| Some((name, environment.get(name)?)));
        Ok(Self {
            runtime_dir: environment.get("SIPHON_RUNTIME_DIR").map(PathBuf::from),
            xdg_runtime_dir: environment.get("XDG_RUNTIME_DIR").map(PathBuf::from),
            state_dir,
            cache_dir,
            cache_bytes: cache_bytes(flags, environment)?,
            cache_limit: cache_limit(environment)?,
            layer_engine: layer_engine(flags, environment)?,
            idle,
            limited: false,
            scope: job.map_or("login".into(), |(name, id)| format!("{name}={}", id.to_string_lossy())),
        })
    }
}

fn cache_bytes(flags: Option<&DaemonFlags>, environment: &Environment) -> Result<Option<u64>, SettingsError> {
    let flag = flags.and_then(|flags| flags.block_cache.clone()).map(|size| ("--block-cache", size));
    let variable = || Some(("SIPHON_BLOCK_CACHE", environment.get("SIPHON_BLOCK_CACHE")?.to_string_lossy().into()));
    let Some((name, size)) = flag.or_else(variable) else { return Ok(None) };
    match size::parse(&size).filter(|bytes| *bytes >= MIN_CACHE_BYTES) {
        None => Err(SettingsError::CacheSize { name, size }),
        bytes => Ok(bytes),
    }
}

fn cache_limit(environment: &Environment) -> Result<Option<u64>, SettingsError> {
    let Some(text) = environment.get("SIPHON_CACHE_LIMIT").filter(|text| !text.is_empty()) else { return Ok(None) };
    let text = text.to_string_lossy();
    size::parse(&text).map(Some).ok_or_else(|| SettingsError::CacheLimit(text.into()))
}

fn layer_engine(flags: Option<&DaemonFlags>, environment: &Environment) -> Result<EngineArg, SettingsError> {
    if let Some(engine) = flags.and_then(|flags| flags.layer_engine) {
        return Ok(engine);
    }
    match environment.get("SIPHON_LAYER_ENGINE").filter(|word| !word.is_empty()) {
        None => Ok(EngineArg::default()),
        Some(word) => {
            let word = word.to_string_lossy();
            EngineArg::from_str(&word, true).map_err(|_| SettingsError::Engine(word.into_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_job_has_its_own_daemons() {
        let scope = |pairs| Common::resolve(None, &Environment::made_up(pairs)).unwrap().scope;

        assert_eq!(scope(&[("SLURM_JOB_ID", "7")]), "SLURM_JOB_ID=7");
        assert_eq!(scope(&[]), "login");
    }

    #[test]
    fn the_flag_for_the_engine_wins_over_the_variable() {
        let resolve = |layer_engine, pairs| {
            let flags = DaemonFlags { layer_engine, ..DaemonFlags::default() };
            Common::resolve(Some(&flags), &Environment::made_up(pairs)).map(|common| common.layer_engine)
        };
        let variable = &[("SIPHON_LAYER_ENGINE", "Kernel")];

        assert_eq!(resolve(None, &[]).unwrap(), EngineArg::Auto);
        assert_eq!(resolve(None, variable).unwrap(), EngineArg::Kernel);
        assert_eq!(resolve(Some(EngineArg::Fuse), variable).unwrap(), EngineArg::Fuse);
        let error = resolve(None, &[("SIPHON_LAYER_ENGINE", "krenel")]).unwrap_err();
        assert!(error.to_string().contains("SIPHON_LAYER_ENGINE is \"krenel\""), "{error}");
    }

    #[test]
    fn the_flag_for_the_block_cache_wins_over_the_variable() {
        let resolve = |flag: Option<&str>, pairs| {
            let flags = DaemonFlags { block_cache: flag.map(str::to_owned), ..DaemonFlags::default() };
            Common::resolve(Some(&flags), &Environment::made_up(pairs)).map(|common| common.cache_bytes)
        };
        let variable = &[("SIPHON_BLOCK_CACHE", "2M"), ("APPTAINER_BLOCK_CACHE", "3M")];

        assert_eq!(resolve(None, &variable[1..]).unwrap(), None);
        assert_eq!(resolve(None, variable).unwrap(), Some(2 << 20));
        assert_eq!(resolve(Some("1G"), variable).unwrap(), Some(1 << 30));
        assert!(resolve(Some("2047K"), variable).unwrap_err().to_string().contains("--block-cache is \"2047K\""));
        let error = resolve(None, &[("SIPHON_BLOCK_CACHE", "much")]).unwrap_err();
        assert!(error.to_string().contains("SIPHON_BLOCK_CACHE is \"much\""), "{error}");
    }
}
