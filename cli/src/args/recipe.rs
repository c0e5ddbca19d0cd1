//! Arguments of `build` that concern definition files.

use clap::Args;
use std::path::PathBuf;

// How a definition file is read and built.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Definition files")]
pub struct RecipeFlags {
    /// Only read the definition file, and say what is wrong with it
    #[arg(long, conflicts_with = "sandbox")]
    pub check: bool,
    /// Give {{ NAME }} in the definition file a value
    #[arg(long, value_name = "NAME=VALUE")]
    pub build_arg: Vec<String>,
    /// Give many of them a value: a file with a NAME=VALUE on each line
    #[arg(long, value_name = "FILE")]
    pub build_arg_file: Option<PathBuf>,
    /// Let values that nothing uses pass with a warning
    #[arg(long)]
    pub warn_unused_build_args: bool,
    /// Read the definition as the JSON of singularity; a file that begins with a brace is read so without it
    #[arg(long)]
    pub json: bool,
    /// Run the sections in the sandbox that is there, whatever its header says
    #[arg(short = 'u', long)]
    pub update: bool,
    /// Run only these sections: all, none, or of setup, post, files, environment, test, labels, several separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub section: Vec<String>,
    /// Do not run %test
    #[arg(short = 'T', long)]
    pub notest: bool,
    /// Run all sections, and keep nothing of them for the next build
    #[arg(long, visible_alias = "disable-cache")]
    pub no_cache: bool,
    /// Go on with what a %post that failed has left, and run that section again
    #[arg(long, conflicts_with = "no_cache")]
    pub resume: bool,
    /// Bind a path of the host for %post and %test: SRC, SRC:DST or SRC:DST:ro, several separated by commas
    #[arg(short = 'B', long, value_name = "SPEC")]
    pub bind: Vec<String>,
    /// Bind a path of the host for %post and %test: type=bind,source=SRC,destination=DST
    #[arg(long, value_name = "SPEC")]
    pub mount: Vec<String>,
    /// Make the host's NVIDIA driver usable in %post and %test
    #[arg(long)]
    pub nv: bool,
    /// Make the host's AMD ROCm libraries usable in %post and %test
    #[arg(long)]
    pub rocm: bool,
    /// The same as --nv; nvidia-container-cli is not used
    #[arg(long)]
    pub nvccli: bool,
    /// With --nv, bring the 32-bit libraries along too
    #[arg(long)]
    pub compat32: bool,
    /// Of an OCI image for several platforms, take the one for this architecture: amd64, arm64, ...
    #[arg(long, value_name = "ARCH")]
    pub arch: Option<String>,
    /// The variant of the architecture, such as v7
    #[arg(long, value_name = "VARIANT")]
    pub arch_variant: Option<String>,
    /// Let %test write, and forget it
    #[arg(long)]
    pub writable_tmpfs: bool,
    /// Let the user read, write and enter everything in a sandbox
    #[arg(long)]
    pub fix_perms: bool,
    /// Be root in the sections; whoever is not root is so anyway
    #[arg(short = 'f', long)]
    pub fakeroot: bool,
    /// Be root in the sections without subordinate ids
    #[arg(long, hide = true)]
    pub ignore_subuid: bool,
    /// Be root in the sections without pretending other users and owners
    #[arg(long, hide = true)]
    pub ignore_fakeroot_command: bool,
    /// Options of mksquashfs: -comp NAME and -Xcompression-level N are followed
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub mksquashfs_args: Option<String>,
    /// Keep the directories that the image was built in, and say where they are
    #[arg(long)]
    pub no_cleanup: bool,
    /// Build in this directory
    #[arg(long, value_name = "DIR")]
    pub tmpdir: Option<PathBuf>,
    /// Use a user namespace, as siphon does for everyone but root anyway
    #[arg(long, hide = true)]
    pub userns: bool,
    /// Do without a user namespace; without effect
    #[arg(long, hide = true)]
    pub ignore_userns: bool,
    /// Encrypt the image
    #[arg(short = 'e', long, hide = true)]
    pub encrypt: bool,
    /// Ask for a passphrase to encrypt the image with
    #[arg(long, hide = true)]
    pub passphrase: bool,
    /// The key to encrypt the image with
    #[arg(long, value_name = "FILE", hide = true)]
    pub pem_path: Option<PathBuf>,
    /// Make an image of data only
    #[arg(long, hide = true)]
    pub data: bool,
    /// Build on another machine
    #[arg(long, hide = true)]
    pub remote: bool,
    /// Where BuildKit is
    #[arg(long, value_name = "ADDRESS", hide = true)]
    pub buildkit_host: Option<String>,
}
