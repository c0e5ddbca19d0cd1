//! Flags and environment resolved to plain values.
//!
//! A variable is looked up as `SIPHON_X`, then `APPTAINER_X`, then `SINGULARITY_X`; an empty one counts as absent. The
//! command line wins, except that binds add up.

mod binds;
mod size;

pub use binds::{Bind, BindError};

use crate::args::{DaemonFlags, ExecArgs, GlobalFlags, RunArgs, RunFlags, ShellArgs};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

/// Prefixes of the variables, first one first.
const PREFIXES: [&str; 3] = ["SIPHON_", "APPTAINER_", "SINGULARITY_"];
/// Prefixes of variables that are set inside the container, last one wins.
const CONTAINER_PREFIXES: [&str; 3] = ["SINGULARITYENV_", "APPTAINERENV_", "SIPHONENV_"];
/// What `--no-mount` can name besides paths, as apptainer's configuration has it.
const MOUNT_NAMES: [&str; 9] = ["proc", "sys", "dev", "devpts", "home", "tmp", "hostfs", "cwd", "bind-paths"];
/// How long a daemon without clients stays, for the next run to find it.
const DEFAULT_IDLE: Duration = Duration::from_secs(60);
/// Five eighths are for file content, in blocks of up to 1 MiB; without room for one, each is decoded for every read.
const MIN_CACHE_BYTES: u64 = 2 << 20;
/// Variables that name a batch job. A scheduler kills what a job started, so a daemon belongs to one job.
const JOB_VARIABLES: [&str; 6] =
    ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID", "COBALT_JOBID", "OAR_JOB_ID"];

/// How much is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors only.
    Silent,
    /// Warnings too.
    Quiet,
    /// What a user may want to know.
    Normal,
    /// More.
    Verbose,
    /// Everything.
    Debug,
}

/// The process environment, read once.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// Takes the variables.
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        Self(variables.into_iter().collect())
    }

    /// All variables by name.
    pub fn variables(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.0.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }

    /// A variable as it stands; `None` if it is absent or empty.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// The first of `keys` that is set under one of the prefixes.
    pub fn setting(&self, keys: &[&str]) -> Option<&OsStr> {
        keys.iter().find_map(|key| PREFIXES.iter().find_map(|prefix| self.get(&format!("{prefix}{key}"))))
    }

    fn text(&self, keys: &[&str]) -> Option<String> {
        self.setting(keys).map(|value| value.to_string_lossy().into_owned())
    }

    fn switch(&self, keys: &[&str]) -> bool {
        self.setting(keys).is_some_and(|value| {
            !matches!(value.as_bytes().to_ascii_lowercase().as_slice(), b"0" | b"false" | b"no" | b"off" | b"f" | b"n")
        })
    }
}

/// Where state lies and what all verbs share.
#[derive(Debug, Clone)]
pub struct Common {
    /// Where daemons keep their sockets: `SIPHON_RUNTIME_DIR` if set.
    pub runtime_dir: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`, used if it is ours.
    pub xdg_runtime_dir: Option<PathBuf>,
    /// Where remote bytes are kept: `*_CACHEDIR/siphon`, else `$XDG_CACHE_HOME/siphon`, else `~/.cache/siphon`.
    pub cache_dir: Option<PathBuf>,
    /// Bytes of decoded content to keep at most: `--block-cache`, else `SIPHON_BLOCK_CACHE`.
    pub cache_bytes: Option<u64>,
    /// How long a daemon without clients stays: `SIPHON_IDLE_SECONDS`, 60 unless set.
    pub idle: Duration,
    /// The batch job, or `login`.
    pub scope: String,
}

impl Common {
    /// Reads the environment, and the flags of a command that may start a daemon.
    ///
    /// # Errors
    /// [`SettingsError::CacheSize`].
    pub fn resolve(flags: Option<&DaemonFlags>, environment: &Environment) -> Result<Self, SettingsError> {
        let cache_dir = environment
            .setting(&["CACHEDIR"])
            .or_else(|| environment.get("XDG_CACHE_HOME"))
            .map(|dir| PathBuf::from(dir).join("siphon"));
        let idle = environment
            .get("SIPHON_IDLE_SECONDS")
            .and_then(|text| text.to_str()?.parse().ok())
            .map_or(DEFAULT_IDLE, Duration::from_secs);
        let job = JOB_VARIABLES.iter().find_map(|name| Some((name, environment.get(name)?)));
        Ok(Self {
            runtime_dir: environment.get("SIPHON_RUNTIME_DIR").map(PathBuf::from),
            xdg_runtime_dir: environment.get("XDG_RUNTIME_DIR").map(PathBuf::from),
            cache_dir,
            cache_bytes: cache_bytes(flags, environment)?,
            idle,
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

/// How much to print: the flags, or `*_DEBUG`, `*_SILENT`, `*_QUIET`, `*_VERBOSE`.
pub fn verbosity(flags: GlobalFlags, environment: &Environment) -> Verbosity {
    let on = |flag: bool, key: &str| flag || environment.switch(&[key]);
    if on(flags.debug, "DEBUG") {
        Verbosity::Debug
    } else if on(flags.silent, "SILENT") {
        Verbosity::Silent
    } else if on(flags.quiet, "QUIET") {
        Verbosity::Quiet
    } else if on(flags.verbose, "VERBOSE") {
        Verbosity::Verbose
    } else {
        Verbosity::Normal
    }
}

/// What runs in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// This command.
    Exec(Vec<OsString>),
    /// A shell: the program if one was chosen, and its arguments.
    Shell {
        /// The program, else /bin/bash or /bin/sh.
        program: Option<OsString>,
        /// Its arguments.
        arguments: Vec<OsString>,
    },
    /// The runscript with these arguments.
    Run(Vec<OsString>),
}

impl Action {
    /// The name of the action, as `APPTAINER_COMMAND` has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Shell { .. } => "shell",
            Self::Run(_) => "run",
        }
    }
}

/// Where writes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// Nowhere: they fail.
    Refused,
    /// Into the sandbox.
    Sandbox,
    /// Into memory, for this run only.
    Temporary,
}

/// The home directory inside and what stands behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// The directory of the host.
    pub source: PathBuf,
    /// Where it appears, if not under its own name.
    pub destination: Option<PathBuf>,
}

/// Parts of the default mounts that can be left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeftOut(BTreeSet<String>);

impl LeftOut {
    /// Whether `name` (`proc`, `home`, `/etc/hosts`, ...) was named.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

/// A run, as asked for.
#[derive(Debug, Clone)]
pub struct RunSettings {
    /// The image as typed; absolute once a run knows where it was typed.
    pub image: String,
    /// What runs.
    pub action: Action,
    /// Binds of the user, the command line's first.
    pub binds: Vec<Bind>,
    /// Another home.
    pub home: Option<Home>,
    /// Default mounts to leave out.
    pub left_out: LeftOut,
    /// Where to start.
    pub cwd: Option<PathBuf>,
    /// Where writes go.
    pub writes: Writes,
    /// Keep the host's variables out.
    pub clean_env: bool,
    /// Variables to set inside, in order of name.
    pub injected: BTreeMap<OsString, OsString>,
    /// Whether the shell evaluates their values.
    pub evaluate: bool,
    /// NVIDIA driver.
    pub nv: bool,
    /// Whether the container's script leaves INFO messages out.
    pub quiet: bool,
    /// What was asked for and is not done.
    pub warnings: Vec<String>,
}

/// Why settings make no sense.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A bind cannot be read.
    #[error("while parsing bind path")]
    Bind(#[from] BindError),
    /// `--env` without a value.
    #[error("{0:?} must be formatted as NAME=VALUE")]
    Env(String),
    /// `--home` without a path.
    #[error("home argument {0:?} must be SRC or SRC:DST with absolute DST")]
    Home(String),
    /// `--block-cache` or its variable with something else than a size.
    #[error("{name} is {size:?}, and must be a number of bytes from 2M on, alone or with K, M or G")]
    CacheSize {
        /// The flag or the variable.
        name: &'static str,
        /// What was given.
        size: String,
    },
    /// A path that is not absolute where one is needed.
    #[error("the image argument is not valid UTF-8")]
    ImageName,
}

impl SettingsError {
    /// Whether the command line itself is wrong, and not what it asks for: apptainer's exit codes tell the two apart.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Env(_))
    }
}

impl RunSettings {
    /// Settings of `exec`.
    ///
    /// # Errors
    /// [`SettingsError`] for what cannot be understood.
    pub fn exec(args: ExecArgs, environment: &Environment) -> Result<Self, SettingsError> {
        let mut words = args.image_and_command.into_iter();
        let image = words.next().unwrap_or_default();
        Self::resolve(image, Action::Exec(words.collect()), args.flags, environment)
    }

    /// Settings of `shell`.
    ///
    /// # Errors
    /// [`SettingsError`] for what cannot be understood.
    pub fn shell(args: ShellArgs, environment: &Environment) -> Result<Self, SettingsError> {
        let mut words = args.image_and_args.into_iter();
        let image = words.next().unwrap_or_default();
        let program = args.shell.or_else(|| environment.setting(&["SHELL"]).map(OsStr::to_owned));
        let action = Action::Shell { program, arguments: words.collect() };
        Self::resolve(image, action, args.flags, environment)
    }

    /// Settings of `run`.
    ///
    /// # Errors
    /// [`SettingsError`] for what cannot be understood.
    pub fn run(args: RunArgs, environment: &Environment) -> Result<Self, SettingsError> {
        let mut words = args.image_and_args.into_iter();
        let image = words.next().unwrap_or_default();
        Self::resolve(image, Action::Run(words.collect()), args.flags, environment)
    }

    fn resolve(
        image: OsString,
        action: Action,
        flags: RunFlags,
        environment: &Environment,
    ) -> Result<Self, SettingsError> {
        let mut warnings = Vec::new();
        let mut binds = Vec::new();
        for spec in flags.bind.iter().chain(&environment.text(&["BIND", "BINDPATH"])) {
            binds.extend(Bind::parse_list(spec)?);
        }
        let binds = binds::without_repeated_destinations(binds, &mut warnings);
        let home = flags.home.or_else(|| environment.text(&["HOME"]));
        let mut left_out: BTreeSet<String> = flags.no_mount.into_iter().collect();
        if let Some(list) = environment.text(&["NO_MOUNT"]) {
            left_out.extend(list.split(',').map(str::to_owned));
        }
        warnings.extend(unknown_mounts(&left_out));
        if flags.no_home || environment.switch(&["NO_HOME"]) {
            left_out.insert("home".into());
        }
        Ok(Self {
            image: image.into_string().map_err(|_| SettingsError::ImageName)?,
            action,
            binds,
            home: home.map(|spec| parse_home(&spec)).transpose()?,
            left_out: LeftOut(left_out),
            cwd: flags.cwd.or_else(|| environment.text(&["CWD", "TARGET_CWD", "PWD", "TARGET_PWD"])).map(PathBuf::from),
            writes: writes(
                flags.writable || environment.switch(&["WRITABLE"]),
                flags.writable_tmpfs || environment.switch(&["WRITABLE_TMPFS"]),
                &mut warnings,
            ),
            clean_env: flags.cleanenv || environment.switch(&["CLEANENV"]),
            injected: injected(&flags.env, environment, &mut warnings)?,
            evaluate: !(flags.no_eval || environment.switch(&["NO_EVAL"])),
            nv: flags.nv || environment.switch(&["NV"]),
            quiet: false,
            warnings,
        })
    }
}

fn writes(sandbox: bool, temporary: bool, warnings: &mut Vec<String>) -> Writes {
    if sandbox && temporary {
        warnings.push("Disabling --writable-tmpfs flag, mutually exclusive with --writable".into());
    }
    match (sandbox, temporary) {
        (true, _) => Writes::Sandbox,
        (false, true) => Writes::Temporary,
        (false, false) => Writes::Refused,
    }
}

fn parse_home(spec: &str) -> Result<Home, SettingsError> {
    let refused = || SettingsError::Home(spec.to_owned());
    let (source, destination) = match spec.split_once(':') {
        None => (spec, None),
        Some((source, destination)) => (source, Some(PathBuf::from(destination))),
    };
    if source.is_empty() || destination.as_ref().is_some_and(|path| !path.is_absolute()) {
        return Err(refused());
    }
    Ok(Home { source: PathBuf::from(source), destination })
}

/// Warnings about what no default mount is called.
fn unknown_mounts(left_out: &BTreeSet<String>) -> impl Iterator<Item = String> {
    let unknown = left_out.iter().filter(|name| !name.starts_with('/') && !MOUNT_NAMES.contains(&name.as_str()));
    unknown.map(|name| format!("Ignoring unknown mount type '{name}'"))
}

/// `APPTAINERENV_X` and its kin, then `--env` over them. The home is chosen by `--home` alone.
fn injected(
    flags: &[String],
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Result<BTreeMap<OsString, OsString>, SettingsError> {
    let mut variables = BTreeMap::new();
    for prefix in CONTAINER_PREFIXES {
        for (name, value) in environment.variables() {
            if let Some(name) = name.as_bytes().strip_prefix(prefix.as_bytes()).filter(|name| !name.is_empty()) {
                variables.insert(OsString::from_vec(name.to_vec()), value.to_owned());
            }
        }
    }
    for pair in flags.iter().flat_map(|flag| split_pairs(flag)) {
        let (name, value) = pair.split_once('=').ok_or_else(|| SettingsError::Env(pair.clone()))?;
        variables.insert(name.into(), value.into());
    }
    if variables.remove(OsStr::new("HOME")).is_some() {
        warnings.push("Overriding HOME environment variable with APPTAINERENV_HOME is not permitted".into());
    }
    Ok(variables)
}

/// `A=1,B=2` is two pairs and `A=1,2` is one: only with more than one `=` do commas separate, and not within quotes.
fn split_pairs(flag: &str) -> Vec<String> {
    if flag.matches('=').count() <= 1 {
        return vec![flag.to_owned()];
    }
    let (mut pairs, mut current, mut quoted) = (Vec::new(), String::new(), false);
    for character in flag.chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => pairs.push(std::mem::take(&mut current)),
            other => current.push(other),
        }
    }
    pairs.push(current);
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        Environment::new(pairs.iter().map(|(name, value)| (name.into(), value.into())))
    }

    fn exec(flags: RunFlags, pairs: &[(&str, &str)]) -> Result<RunSettings, SettingsError> {
        let words = vec!["image.sif".into(), "true".into()];
        RunSettings::exec(ExecArgs { flags, image_and_command: words }, &environment(pairs))
    }

    #[test]
    fn variables_of_siphon_win_over_apptainers_and_those_over_singularitys() {
        let both = environment(&[("SINGULARITY_CWD", "/s"), ("APPTAINER_CWD", "/a")]);
        let empty = environment(&[("SINGULARITY_CWD", "/s"), ("APPTAINER_CWD", "")]);

        assert_eq!(both.setting(&["CWD"]), Some(OsStr::new("/a")));
        assert_eq!(empty.setting(&["CWD"]), Some(OsStr::new("/s")));
    }

    #[test]
    fn binds_of_environment_and_command_line_add_up() {
        let flags = RunFlags { bind: vec!["/c:/d".into()], ..RunFlags::default() };

        let settings = exec(flags, &[("APPTAINER_BIND", "/a,/b")]).unwrap();

        let sources: Vec<_> = settings.binds.iter().map(|bind| bind.source.to_str().unwrap()).collect();
        assert_eq!(sources, ["/c", "/a", "/b"]);
    }

    #[test]
    fn the_home_is_not_set_as_a_variable() {
        let flags = RunFlags { env: vec!["HOME=/elsewhere".into()], ..RunFlags::default() };

        let settings = exec(flags, &[("APPTAINERENV_HOME", "/there")]).unwrap();

        assert!(settings.injected.is_empty());
        assert_eq!(settings.warnings.len(), 1);
    }

    #[test]
    fn a_default_mount_that_does_not_exist_is_told_of() {
        let flags = RunFlags { no_mount: vec!["tmp".into(), "/etc/hosts".into(), "tpm".into()], ..RunFlags::default() };

        let settings = exec(flags, &[]).unwrap();

        assert_eq!(settings.warnings, ["Ignoring unknown mount type 'tpm'"]);
    }

    #[test]
    fn commas_separate_variables_only_where_several_are_given() {
        let flags = RunFlags { env: vec!["A=1,B=2".into(), "C=1,2".into()], ..RunFlags::default() };

        let settings = exec(flags, &[("APPTAINERENV_A", "0"), ("SINGULARITYENV_D", "4")]).unwrap();

        let pairs: Vec<_> =
            settings.injected.iter().map(|(name, value)| (name.to_str().unwrap(), value.to_str().unwrap())).collect();
        assert_eq!(pairs, [("A", "1"), ("B", "2"), ("C", "1,2"), ("D", "4")]);
    }

    #[test]
    fn a_home_may_have_another_name_inside() {
        assert_eq!(
            parse_home("/u/me:/home").unwrap(),
            Home { source: "/u/me".into(), destination: Some("/home".into()) }
        );
        assert!(parse_home("/u/me:home").is_err());
        assert!(parse_home("").is_err());
    }

    #[test]
    fn of_staying_and_forgotten_changes_the_staying_win() {
        let flags = RunFlags { writable: true, writable_tmpfs: true, ..RunFlags::default() };

        let settings = exec(flags, &[]).unwrap();

        assert_eq!(settings.writes, Writes::Sandbox);
        assert_eq!(settings.warnings, ["Disabling --writable-tmpfs flag, mutually exclusive with --writable"]);
    }

    #[test]
    fn a_batch_job_has_its_own_daemons() {
        let scope = |pairs| Common::resolve(None, &environment(pairs)).unwrap().scope;

        assert_eq!(scope(&[("SLURM_JOB_ID", "7")]), "SLURM_JOB_ID=7");
        assert_eq!(scope(&[]), "login");
    }

    #[test]
    fn the_flag_for_the_block_cache_wins_over_the_variable() {
        let resolve = |flag: Option<&str>, pairs| {
            let flags = DaemonFlags { block_cache: flag.map(str::to_owned) };
            Common::resolve(Some(&flags), &environment(pairs)).map(|common| common.cache_bytes)
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
