//! Flags and environment resolved to plain values.
//!
//! A variable is looked up as `SIPHON_X`, then `APPTAINER_X`, then `SINGULARITY_X`; an empty one counts as absent. The
//! command line wins, except that binds add up.

mod binds;
mod contain;
mod gpu;
mod mount_spec;
mod namespaces;
mod other;
mod size;
mod variables;

pub use binds::{Bind, BindError};
pub use contain::Contain;
pub use gpu::GpuSettings;
pub use namespaces::{Namespaces, Processes};
pub use variables::Variables;

use crate::args::{DaemonFlags, ExecArgs, GlobalFlags, InstanceStartArgs, RunArgs, RunFlags, ShellArgs, TestArgs};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

/// Prefixes of the variables, first one first.
const PREFIXES: [&str; 3] = ["SIPHON_", "APPTAINER_", "SINGULARITY_"];
/// Default mounts that can be left out; `hostfs` is never there.
const MOUNTS: [&str; 9] = ["proc", "sys", "dev", "devpts", "home", "tmp", "hostfs", "cwd", "bind-paths"];
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

    /// Whether one of `keys` is set, and not to a word for no.
    pub fn switch(&self, keys: &[&str]) -> bool {
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
    /// Where instances are written down: `*_CONFIGDIR/siphon` if set, else `$XDG_STATE_HOME/siphon`.
    pub state_dir: Option<PathBuf>,
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
        level(environment).unwrap_or(Verbosity::Normal)
    }
}

/// The level that `*_MESSAGELEVEL` gives by its number, from -4 for fatal errors over 1 for INFO to 5.
fn level(environment: &Environment) -> Option<Verbosity> {
    let level: i32 = environment.text(&["MESSAGELEVEL"])?.trim().parse().ok()?;
    Some(match level {
        ..=-3 => Verbosity::Silent,
        -2..=0 => Verbosity::Quiet,
        1 => Verbosity::Normal,
        2..=4 => Verbosity::Verbose,
        5.. => Verbosity::Debug,
    })
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
    /// The test script with these arguments.
    Test(Vec<OsString>),
    /// The startscript with these arguments.
    Start(Vec<OsString>),
}

impl Action {
    /// The name of the action, as `APPTAINER_COMMAND` has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Shell { .. } => "shell",
            Self::Run(_) => "run",
            Self::Test(_) => "test",
            Self::Start(_) => "start",
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

/// How the caller is root inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fakeroot {
    /// Whether subordinate ids become the other users and groups, if the caller has any.
    pub subordinate_ids: bool,
    /// Whether, without them, other users and owners are pretended.
    pub pretend: bool,
    /// Whether root may be alone.
    pub alone: bool,
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

impl FromIterator<String> for LeftOut {
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        Self(names.into_iter().collect())
    }
}

/// A run, as asked for.
#[derive(Debug, Clone)]
pub struct RunSettings {
    /// The image as typed; absolute once a run knows where it was typed.
    pub image: String,
    /// The instance that it is, or is in.
    pub instance: Option<String>,
    /// What runs.
    pub action: Action,
    /// The SCIF app of the image that runs.
    pub app: Option<String>,
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
    /// Whether and how the caller is root inside.
    pub fakeroot: Option<Fakeroot>,
    /// Keep the host's variables out.
    pub clean_env: bool,
    /// Variables to set inside.
    pub variables: Variables,
    /// What it sees of the host's files.
    pub contain: Contain,
    /// What it does not share with the host.
    pub namespaces: Namespaces,
    /// Options that were asked for and that siphon does not have, which would take something away from root.
    pub less_for_root: Vec<&'static str>,
    /// GPUs.
    pub gpu: GpuSettings,
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
    /// A place for a scratch directory that is not absolute.
    #[error("scratch directory {0:?} must be an absolute path")]
    Scratch(String),
    /// A name server that is none.
    #[error("dns ip {0} is not a valid IP address")]
    NameServer(String),
    /// A host name that the kernel does not take.
    #[error("the host name {0:?} is not of 1 to 64 bytes")]
    Hostname(String),
    /// An option that siphon does not have.
    #[error("{option} is not supported; {instead}")]
    Unsupported {
        /// The option as given.
        option: String,
        /// What to do instead.
        instead: &'static str,
    },
    /// The image's name is no text.
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

    /// Settings of `test`.
    ///
    /// # Errors
    /// [`SettingsError`] for what cannot be understood.
    pub fn test(args: TestArgs, environment: &Environment) -> Result<Self, SettingsError> {
        let mut words = args.image_and_args.into_iter();
        let image = words.next().unwrap_or_default();
        Self::resolve(image, Action::Test(words.collect()), args.flags, environment)
    }

    /// Settings of `instance start`, or of `instance run` with `runscript`. An instance always has processes of its own.
    ///
    /// # Errors
    /// [`SettingsError`] for what cannot be understood.
    pub fn instance(
        args: InstanceStartArgs,
        runscript: bool,
        environment: &Environment,
    ) -> Result<Self, SettingsError> {
        let mut words = args.image_name_and_args.into_iter();
        let (image, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let arguments = words.collect();
        let action = if runscript { Action::Run(arguments) } else { Action::Start(arguments) };
        let mut settings = Self::resolve(image, action, args.flags, environment)?;
        settings.instance = Some(name.to_string_lossy().into_owned());
        settings.namespaces.processes = Processes::Own;
        Ok(settings)
    }

    fn resolve(
        image: OsString,
        action: Action,
        mut flags: RunFlags,
        environment: &Environment,
    ) -> Result<Self, SettingsError> {
        contain::expand(&mut flags, environment);
        let judged = other::judge(&flags.other, environment)?;
        let mut warnings = judged.warnings;
        let mut binds = Vec::new();
        for spec in flags.bind.iter().chain(&environment.text(&["BIND", "BINDPATH"])) {
            binds.extend(Bind::parse_list(spec)?);
        }
        for spec in flags.mount.iter().chain(&environment.text(&["MOUNT"])) {
            binds.extend(mount_spec::parse(spec)?);
        }
        let binds = binds::without_repeated_destinations(binds, &mut warnings);
        let home = flags.home.clone().or_else(|| environment.text(&["HOME"]));
        let mut left_out: BTreeSet<String> = flags.no_mount.iter().cloned().collect();
        if let Some(list) = environment.text(&["NO_MOUNT"]) {
            left_out.extend(list.split(',').map(str::to_owned));
        }
        warnings.extend(unknown_mounts(&left_out));
        if flags.no_home || environment.switch(&["NO_HOME"]) {
            left_out.insert("home".into());
        }
        Ok(Self {
            image: image.into_string().map_err(|_| SettingsError::ImageName)?,
            instance: None,
            action,
            app: flags.app.clone().or_else(|| environment.text(&["APP", "APPNAME"])),
            binds,
            home: home.map(|spec| parse_home(&spec)).transpose()?,
            left_out: LeftOut(left_out),
            cwd: flags
                .cwd
                .clone()
                .or_else(|| environment.text(&["CWD", "TARGET_CWD", "PWD", "TARGET_PWD"]))
                .map(PathBuf::from),
            writes: writes(
                flags.writable || environment.switch(&["WRITABLE"]),
                flags.writable_tmpfs || environment.switch(&["WRITABLE_TMPFS"]),
                &mut warnings,
            ),
            fakeroot: (flags.fakeroot || environment.switch(&["FAKEROOT"])).then(|| Fakeroot {
                subordinate_ids: !(flags.ignore_subuid || environment.switch(&["IGNORE_SUBUID"])),
                pretend: !(flags.ignore_fakeroot_command || environment.switch(&["IGNORE_FAKEROOT_COMMAND"])),
                alone: !(flags.ignore_userns || environment.switch(&["IGNORE_USERNS"])),
            }),
            clean_env: flags.cleanenv || environment.switch(&["CLEANENV"]),
            variables: Variables::resolve(&flags, environment, &mut warnings)?,
            contain: Contain::resolve(&flags.contain, environment)?,
            namespaces: Namespaces::resolve(flags.namespaces, environment)?,
            less_for_root: judged.less_for_root,
            gpu: GpuSettings::resolve(flags.gpu, environment, &mut warnings),
            quiet: false,
            warnings,
        })
    }
}

/// A warning for each of the mounts to leave out that is none.
fn unknown_mounts(left_out: &BTreeSet<String>) -> impl Iterator<Item = String> {
    let unknown = left_out.iter().filter(|name| !name.starts_with('/') && !MOUNTS.contains(&name.as_str()));
    unknown.map(|name| format!("Ignoring unknown mount type '{name}'"))
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

        assert!(settings.variables.injected.is_empty());
        assert_eq!(settings.warnings.len(), 1);
    }

    #[test]
    fn a_default_mount_that_does_not_exist_is_told_of() {
        let flags = RunFlags { no_mount: vec!["tmp".into(), "/etc/hosts".into(), "tpm".into()], ..RunFlags::default() };

        let settings = exec(flags, &[]).unwrap();

        assert_eq!(settings.warnings, ["Ignoring unknown mount type 'tpm'"]);
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
    fn the_level_of_messages_may_be_a_number_and_a_flag_wins_over_it() {
        let mut quiet = GlobalFlags::default();
        quiet.quiet = true;
        let cases = [
            ("-4", Verbosity::Silent),
            ("-1", Verbosity::Quiet),
            ("1", Verbosity::Normal),
            ("3", Verbosity::Verbose),
            ("5", Verbosity::Debug),
            ("x", Verbosity::Normal),
        ];

        for (text, expected) in cases {
            let environment = environment(&[("APPTAINER_MESSAGELEVEL", text)]);
            assert_eq!(verbosity(GlobalFlags::default(), &environment), expected, "{text}");
            assert_eq!(verbosity(quiet, &environment), Verbosity::Quiet, "{text}");
        }
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
