//! A run, as asked for.

use super::{
    Bind, Contain, Environment, GpuSettings, Limit, Namespaces, OverlaySpec, Processes, SettingsError, Variables,
    binds, contain, limits, mount_spec, other, size,
};
use crate::args::{ExecArgs, InstanceStartArgs, RunArgs, RunFlags, ShellArgs, TestArgs};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// Default mounts that can be left out; `hostfs` is never there.
const MOUNTS: [&str; 9] = ["proc", "sys", "dev", "devpts", "home", "tmp", "hostfs", "cwd", "bind-paths"];

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
    /// Into the sandbox, or the image's own overlay partition.
    Sandbox,
    /// Into an overlay.
    Overlay,
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

impl Fakeroot {
    fn resolve(flags: &RunFlags, environment: &Environment) -> Option<Self> {
        let on = |flag: bool, key: &str| flag || environment.switch(&[key]);
        on(flags.fakeroot, "FAKEROOT").then(|| Self {
            subordinate_ids: !on(flags.ignore_subuid, "IGNORE_SUBUID"),
            pretend: !on(flags.ignore_fakeroot_command, "IGNORE_FAKEROOT_COMMAND"),
            alone: !on(flags.ignore_userns, "IGNORE_USERNS"),
        })
    }
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
    /// What is laid over the image, lowest first.
    pub overlays: Vec<OverlaySpec>,
    /// Where writes go, before overlays are looked at.
    pub writes: Writes,
    /// How much memory writes that are forgotten may take, in bytes.
    pub memory_bytes: Option<u64>,
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
    /// What it may use.
    pub limits: Vec<Limit>,
    /// A file of more of them.
    pub limits_file: Option<PathBuf>,
    /// GPUs.
    pub gpu: GpuSettings,
    /// Whether the container's script leaves INFO messages out.
    pub quiet: bool,
    /// What was asked for and is not done.
    pub warnings: Vec<String>,
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
        let judged = other::judge(&flags.other, &image, environment)?;
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
        let writes = writes(
            flags.writable || environment.switch(&["WRITABLE"]),
            flags.writable_tmpfs || environment.switch(&["WRITABLE_TMPFS"]),
            &mut warnings,
        );
        let overlays = OverlaySpec::resolve(&flags.overlay, environment);
        if writes == Writes::Sandbox && !overlays.is_empty() {
            return Err(SettingsError::OverlayWithWritable);
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
            overlays,
            writes,
            memory_bytes: memory_bytes(flags.writable_tmpfs_size.as_deref(), environment)?,
            fakeroot: Fakeroot::resolve(&flags, environment),
            clean_env: flags.cleanenv || environment.switch(&["CLEANENV"]),
            variables: Variables::resolve(&flags, environment, &mut warnings)?,
            contain: Contain::resolve(&flags.contain, environment)?,
            namespaces: Namespaces::resolve(flags.namespaces, environment)?,
            less_for_root: judged.less_for_root,
            limits: limits::resolve(&flags.other, environment)?,
            limits_file: flags
                .other
                .apply_cgroups
                .clone()
                .or_else(|| environment.text(&["APPLY_CGROUPS"]))
                .map(PathBuf::from),
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

fn memory_bytes(flag: Option<&str>, environment: &Environment) -> Result<Option<u64>, SettingsError> {
    let size = flag.map(str::to_owned).or_else(|| environment.text(&["WRITABLE_TMPFS_SIZE"]));
    let bytes = |size: String| size::parse(&size).filter(|bytes| *bytes > 0).ok_or(SettingsError::MemorySize(size));
    size.map(bytes).transpose()
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

    fn exec(flags: RunFlags, pairs: &[(&str, &str)]) -> Result<RunSettings, SettingsError> {
        let words = vec!["image.sif".into(), "true".into()];
        RunSettings::exec(ExecArgs { flags, image_and_command: words }, &Environment::made_up(pairs))
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
    fn memory_for_writes_has_no_limit_but_the_one_that_is_given() {
        let sized = |flag: Option<&str>, pairs: &[(&str, &str)]| {
            let flags = RunFlags { writable_tmpfs_size: flag.map(str::to_owned), ..RunFlags::default() };
            exec(flags, pairs).map(|settings| settings.memory_bytes).map_err(|error| error.to_string())
        };

        assert_eq!(sized(None, &[]), Ok(None));
        assert_eq!(sized(Some("2G"), &[("APPTAINER_WRITABLE_TMPFS_SIZE", "1M")]), Ok(Some(2 << 30)));
        assert_eq!(sized(None, &[("APPTAINER_WRITABLE_TMPFS_SIZE", "1M")]), Ok(Some(1 << 20)));
        assert!(sized(Some("0"), &[]).is_err() && sized(Some("much"), &[]).is_err());
    }

    #[test]
    fn an_overlay_beside_writable_is_refused() {
        let flags = RunFlags { writable: true, overlay: vec!["layer".into()], ..RunFlags::default() };

        assert!(matches!(exec(flags, &[]), Err(SettingsError::OverlayWithWritable)));
    }

    #[test]
    fn of_staying_and_forgotten_changes_the_staying_win() {
        let flags = RunFlags { writable: true, writable_tmpfs: true, ..RunFlags::default() };

        let settings = exec(flags, &[]).unwrap();

        assert_eq!(settings.writes, Writes::Sandbox);
        assert_eq!(settings.warnings, ["Disabling --writable-tmpfs flag, mutually exclusive with --writable"]);
    }
}
