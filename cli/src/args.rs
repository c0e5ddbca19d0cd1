//! What is typed: clap types whose doc comments are the help. That of a command stands at its variant, for the list of all:
//! the type of its options has none.

mod booleans;
mod cache;
#[cfg(test)]
mod compatibility;
mod doctor;
mod gpu;
mod images;
mod index;
mod instance;
mod layer;
mod layers;
mod pin;
mod recipe;
mod registry;
mod run;
mod shorthands;
mod sif;
mod unknown;

pub use cache::{CacheCleanArgs, CacheKind, CacheListArgs, CacheVerb};
pub use doctor::DoctorArgs;
pub use gpu::GpuFlags;
pub use images::{
    BuildArgs, CatArgs, CommitArgs, ImageFlags, InspectArgs, LsArgs, MountArgs, RunHelpArgs, StatusArgs, UmountArgs,
};
pub use index::IndexArgs;
pub use instance::{InstanceListArgs, InstanceStartArgs, InstanceStatsArgs, InstanceStopArgs, InstanceVerb};
pub use layer::{DiffArgs, LayerResetArgs, LayerVerb};
pub use layers::{OverlayCreateArgs, OverlayVerb};
pub use pin::PinArgs;
pub use recipe::RecipeFlags;
pub use registry::{LoginArgs, LogoutArgs, PullArgs, PushArgs, RegistryFlags, RegistryListArgs, RegistryVerb, TagArgs};
pub use run::{ContainFlags, ExecArgs, NamespaceFlags, OtherFlags, RunArgs, RunFlags, ShellArgs, TestArgs};
pub use sif::{SifAddArgs, SifObjectArgs, SifVerb};

use clap::{Args, Command, CommandFactory, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// What follows the name in `siphon --version`, as `apptainer version 1.4.5` has it.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"));

/// The program that image files name as their interpreter.
const LAUNCHER: &str = "run-singularity";

/// Runs container images without unpacking them
///
/// Siphon mounts SIF and squashfs images, local or over http(s), and reads only the parts that are used. It takes the
/// same commands and options as singularity and apptainer.
#[derive(Debug, Parser)]
#[command(name = "siphon", version = VERSION, disable_version_flag = true, subcommand_required = true, arg_required_else_help = true)]
#[command(args_override_self = true)]
pub struct Cli {
    /// Options before the command
    #[command(flatten)]
    pub global: GlobalFlags,
    /// Flags that were given the value false, by the names of their fields
    #[arg(skip)]
    pub switched_off: Vec<String>,
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

impl Cli {
    /// Reads the command line.
    ///
    /// # Errors
    /// What clap says of it: help and version are among the errors.
    pub fn read() -> Result<Self, clap::Error> {
        let words = Self::launched(std::env::args_os().collect());
        if let Some(daemon) = Self::of_daemon(&words) {
            return Ok(daemon);
        }
        let cli = booleans::read(&words).map_err(|error| unknown::explain(error, &words))?;
        // The image and all behind it are taken as they are, so that a wrong option before it looks like an image.
        if let Some(option) = cli.verb.image().filter(|image| image.as_encoded_bytes().starts_with(b"-")) {
            return Err(unknown::flag(option));
        }
        Ok(cli)
    }

    /// The command with the options of all its commands, for what looks at them: the parser builds those of one when that
    /// is typed.
    pub fn whole() -> Command {
        let mut command = Self::command();
        command.build();
        command
    }

    /// An image file that is started as a program names `run-singularity` in its first line. That is this program too, by
    /// another name, and stands for a run.
    fn launched(mut words: Vec<OsString>) -> Vec<OsString> {
        let name = words.first().and_then(|name| std::path::Path::new(name).file_name());
        if name.is_some_and(|name| name == LAUNCHER) {
            words.splice(1..1, ["--quiet", "run"].map(OsString::from));
        }
        words
    }

    /// The command line that a daemon is started with, which takes a millisecond less this way than through the parser.
    fn of_daemon(words: &[OsString]) -> Option<Self> {
        let [_, verb, flag, state, end, image] = words else { return None };
        let is_ours = verb == "daemon" && flag == "--state" && end == "--";
        let verb = Verb::Daemon { state: state.into(), image: Some(image.to_string_lossy().into_owned()) };
        is_ours.then(|| Self { global: GlobalFlags::default(), switched_off: Vec::new(), verb })
    }
}

impl Verb {
    /// The image of a run.
    fn image(&self) -> Option<&OsString> {
        match self {
            Self::Exec(args) => args.image_and_command.first(),
            Self::Shell(args) => args.image_and_args.first(),
            Self::Run(args) => args.image_and_args.first(),
            Self::Test(args) => args.image_and_args.first(),
            Self::Instance { verb: InstanceVerb::Start(args) | InstanceVerb::Run(args) } => {
                args.image_name_and_args.first()
            }
            _ => None,
        }
    }

    /// What the command line says of registries.
    pub fn registries(&self) -> RegistryFlags {
        match self {
            Self::Pull(args) => args.registry.clone(),
            Self::Push(args) => args.registry.clone(),
            Self::Tag(args) => args.registry.clone(),
            Self::Build(args) => args.registry.clone(),
            Self::Exec(args) => args.flags.other.registry.clone(),
            Self::Shell(args) => args.flags.other.registry.clone(),
            Self::Run(args) => args.flags.other.registry.clone(),
            Self::Test(args) => args.flags.other.registry.clone(),
            Self::Instance { verb: InstanceVerb::Start(args) | InstanceVerb::Run(args) } => {
                args.flags.other.registry.clone()
            }
            Self::Registry { verb: RegistryVerb::Login(args) } => {
                RegistryFlags { no_https: args.no_https, ..RegistryFlags::default() }
            }
            _ => RegistryFlags::default(),
        }
    }

    /// How a daemon is to be started, where one may be.
    pub fn daemon(&self) -> Option<&DaemonFlags> {
        match self {
            Self::Exec(args) => Some(&args.flags.daemon),
            Self::Shell(args) => Some(&args.flags.daemon),
            Self::Run(args) => Some(&args.flags.daemon),
            Self::Test(args) => Some(&args.flags.daemon),
            Self::Mount(args) => Some(&args.daemon),
            Self::Instance { verb: InstanceVerb::Start(args) | InstanceVerb::Run(args) } => Some(&args.flags.daemon),
            _ => None,
        }
    }
}

// Options that stand before the command.
#[derive(Debug, Clone, Default, Args)]
pub struct GlobalFlags {
    /// Print every message, for finding out what goes wrong
    #[arg(short, long)]
    pub debug: bool,
    /// Print no INFO messages
    #[arg(short, long)]
    pub quiet: bool,
    /// Print only errors
    #[arg(short, long)]
    pub silent: bool,
    /// Print more messages
    #[arg(short, long)]
    pub verbose: bool,
    /// Print messages without color
    #[arg(long)]
    pub nocolor: bool,
    /// Another apptainer.conf; without effect, as siphon has none
    #[arg(short, long, value_name = "FILE", hide = true)]
    pub config: Option<PathBuf>,
    /// The configuration that was built in; without effect, as siphon has no other
    #[arg(long, hide = true)]
    pub build_config: bool,
    /// Whether the limits of the command line hold already; for siphon itself
    #[arg(long, hide = true)]
    pub limited: bool,
    /// Print the version
    #[arg(long, action = clap::ArgAction::Version)]
    version: (),
}

// Options of the commands that may start a daemon.
#[derive(Debug, Clone, Default, Args)]
pub struct DaemonFlags {
    /// Keep at most so many bytes of decoded image content in memory: a number, alone or with K, M or G
    ///
    /// At least 2M; a 64th of the memory, from 16M to 64M, if not given. Counts where this command starts the daemon
    /// of the image: one that runs already keeps its own.
    #[arg(long, value_name = "SIZE", help_heading = "Daemon")]
    pub block_cache: Option<String>,
    /// Who merges the image and what is written: the kernel's overlayfs, this program over FUSE, or whichever suits
    ///
    /// Unless told otherwise the kernel does, being faster, where a trial shows that it works. Counts for runs that write;
    /// `siphon status` says which it is, and why.
    #[arg(long, value_name = "ENGINE", help_heading = "Daemon")]
    pub layer_engine: Option<EngineArg>,
}

/// Who merges an image and its layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum EngineArg {
    /// The kernel where it works, else FUSE
    #[default]
    Auto,
    /// The kernel's overlayfs, or an error
    Kernel,
    /// This program
    Fuse,
}

/// The commands. The parser learns the options of one when that is typed: those of all take it a millisecond.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Verb {
    /// Run a command in a container
    Exec(ExecArgs),
    /// Run a shell in a container
    Shell(ShellArgs),
    /// Run the image's runscript
    Run(RunArgs),
    /// Run the image's test script
    Test(TestArgs),
    /// Print the image's help text
    RunHelp(RunHelpArgs),
    /// Make a sandbox from an image, or an image from a sandbox
    Build(BuildArgs),
    /// Turn a sandbox (image plus changes) into a new read-only image
    Commit(CommitArgs),
    /// Fetch an image into a file
    Pull(PullArgs),
    /// Send an image file to a registry
    Push(PushArgs),
    /// Give an image in a registry a further tag
    Tag(TagArgs),
    /// Log in to registries
    Registry {
        /// What to do
        #[command(subcommand)]
        verb: RegistryVerb,
    },
    /// List what a sandbox changes of its image, or what differs between two images
    Diff(DiffArgs),
    /// Work on the layer of a sandbox
    Layer {
        /// What to do
        #[command(subcommand)]
        verb: LayerVerb,
    },
    /// Mount an image onto a directory of the host
    Mount(MountArgs),
    /// Unmount what `mount` mounted
    Umount(UmountArgs),
    /// List files of an image without mounting it
    Ls(LsArgs),
    /// Print files of an image without mounting it
    Cat(CatArgs),
    /// Print what an image says of itself
    Inspect(InspectArgs),
    /// Show the daemons, their mounts and how much was read and fetched
    Status(StatusArgs),
    /// Run containers in the background
    Instance {
        /// What to do
        #[command(subcommand)]
        verb: InstanceVerb,
    },
    /// Make layers that keep changes
    Overlay {
        /// What to do
        #[command(subcommand)]
        verb: OverlayVerb,
    },
    /// Look at the objects of a SIF image
    Sif {
        /// What to do
        #[command(subcommand)]
        verb: SifVerb,
    },
    /// Show and clean what was kept of remote images
    Cache {
        /// What to do
        #[command(subcommand)]
        verb: CacheVerb,
    },
    /// Fetch all of a remote image and keep it: it then runs without network
    Pin(PinArgs),
    /// Make what lets an OCI image be read in place, for this machine or for all
    Index(IndexArgs),
    /// Check what this machine has of that which siphon needs
    Doctor(DoctorArgs),
    /// Print completions for a shell
    Completion {
        /// The shell to print them for
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one for each command
    Man {
        /// Where to write them, as NAME.1
        directory: Option<PathBuf>,
    },
    /// Print the version
    Version,
    /// Print where the parts of this installation are
    ///
    /// All as NAME=VALUE, or the value of one name. They have the names that apptainer gives to what it fixes when it is
    /// built.
    Buildcfg {
        /// The name of the one to print
        parameter: Option<String>,
    },
    /// Write an apptainer.conf that says what siphon does
    ///
    /// Siphon reads no configuration file. Of an old one it is said which of its directives have no effect.
    Confgen {
        /// The file to write, and before it an old one to look at
        #[arg(value_name = "[OLD] NEW", required = true, num_args = 1..=2)]
        files: Vec<PathBuf>,
    },
    /// Make an image file of an OCI image in the cache, and print its path; started by runs
    #[command(hide = true)]
    Convert {
        /// The image
        image: String,
    },
    /// Do a step of a build; started by build
    #[command(hide = true)]
    BuildStep {
        /// What to do
        job: PathBuf,
    },
    /// Serve one mount; started by the other commands
    #[command(hide = true)]
    Daemon {
        /// The daemon's state directory
        #[arg(long)]
        state: PathBuf,
        /// The image, for `ps` to show
        image: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_started_as_its_command_line_says_without_the_parser_too() {
        let words = ["siphon", "daemon", "--state", "/run/user/1/key", "--", "-image.sif"].map(OsString::from);

        let quick = format!("{:?}", Cli::of_daemon(&words).unwrap().verb);

        assert_eq!(quick, format!("{:?}", Cli::try_parse_from(&words).unwrap().verb));
        assert!(Cli::of_daemon(&words[..5]).is_none());
    }

    #[test]
    fn an_image_that_is_started_as_a_program_is_run() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();

        assert_eq!(
            Cli::launched(words("/bin/run-singularity ./a.sif -x")),
            words("/bin/run-singularity --quiet run ./a.sif -x")
        );
        assert_eq!(Cli::launched(words("/bin/singularity ./a.sif")), words("/bin/singularity ./a.sif"));
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::whole().debug_assert();
    }

    #[test]
    fn the_help_of_a_command_begins_as_the_list_of_all_says() {
        let list = Cli::command();

        for command in Cli::whole().get_subcommands().filter(|command| command.get_name() != "help") {
            let about = list.find_subcommand(command.get_name()).unwrap().get_about();
            assert_eq!(command.get_about().map(ToString::to_string), about.map(ToString::to_string));
        }
    }

    #[test]
    fn everything_from_the_image_on_belongs_to_the_container() {
        let words = ["siphon", "-s", "exec", "-e", "--nv", "a.sif", "ls", "--help", "-B", "x"];

        let Verb::Exec(args) = Cli::try_parse_from(words).unwrap().verb else { panic!("exec is exec") };

        assert_eq!(args.image_and_command, ["a.sif", "ls", "--help", "-B", "x"]);
        assert!(args.flags.cleanenv && args.flags.gpu.nv && args.flags.bind.is_empty());
    }

    #[test]
    fn an_option_may_be_given_twice_and_a_list_grows() {
        let words =
            ["siphon", "exec", "--nv", "--nv", "--pwd", "/a", "--pwd", "/b", "-B", "x", "-B", "y", "a.sif", "ls"];

        let Verb::Exec(args) = Cli::try_parse_from(words).unwrap().verb else { panic!("exec is exec") };

        assert!(args.flags.gpu.nv);
        assert_eq!(
            (args.flags.cwd.as_deref(), args.flags.bind.as_slice()),
            (Some("/b"), &["x".into(), "y".into()][..])
        );
    }

    #[test]
    fn options_right_after_the_image_belong_to_the_container_too() {
        let Verb::Run(args) = Cli::try_parse_from(["siphon", "run", "a.sif", "--nv"]).unwrap().verb else {
            panic!("run is run")
        };

        assert_eq!(args.image_and_args, ["a.sif", "--nv"]);
    }
}
