//! Arguments of `exec`, `shell` and `run`.

mod contain;
mod namespaces;
mod other;

pub use contain::ContainFlags;
pub use namespaces::NamespaceFlags;
pub use other::OtherFlags;

use super::{DaemonFlags, GpuFlags};
use clap::Args;
use std::ffi::OsString;

// `exec`: everything from the image on belongs to the container.
#[derive(Debug, Args)]
#[command(override_usage = "siphon exec [OPTIONS] <IMAGE> <COMMAND> [ARGS]...")]
pub struct ExecArgs {
    /// How to run
    #[command(flatten)]
    pub flags: RunFlags,
    /// An image (SIF, squashfs, sandbox directory or http(s) URL), then the command and its arguments
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, allow_hyphen_values = true, value_names = ["IMAGE", "COMMAND"])]
    pub image_and_command: Vec<OsString>,
}

// `shell`.
#[derive(Debug, Args)]
#[command(override_usage = "siphon shell [OPTIONS] <IMAGE> [ARGS]...")]
pub struct ShellArgs {
    /// How to run
    #[command(flatten)]
    pub flags: RunFlags,
    /// The shell to run inside, instead of /bin/bash or /bin/sh
    #[arg(short = 's', long)]
    pub shell: Option<OsString>,
    /// An image, then arguments of the shell
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, allow_hyphen_values = true, value_names = ["IMAGE", "ARGS"])]
    pub image_and_args: Vec<OsString>,
}

// `run`.
#[derive(Debug, Args)]
#[command(override_usage = "siphon run [OPTIONS] <IMAGE> [ARGS]...")]
pub struct RunArgs {
    /// How to run
    #[command(flatten)]
    pub flags: RunFlags,
    /// An image, then arguments of its runscript
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, allow_hyphen_values = true, value_names = ["IMAGE", "ARGS"])]
    pub image_and_args: Vec<OsString>,
}

// `test`.
#[derive(Debug, Args)]
#[command(override_usage = "siphon test [OPTIONS] <IMAGE> [ARGS]...")]
pub struct TestArgs {
    /// How to run
    #[command(flatten)]
    pub flags: RunFlags,
    /// An image, then arguments of its test script
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, allow_hyphen_values = true, value_names = ["IMAGE", "ARGS"])]
    pub image_and_args: Vec<OsString>,
}

// Options that `exec`, `shell`, `run` and `test` share.
#[derive(Debug, Clone, Default, Args)]
pub struct RunFlags {
    /// Bind a path of the host into the container: SRC, SRC:DST or SRC:DST:ro, several separated by commas
    ///
    /// A colon or comma that belongs to a path is written with a backslash before it. DST is made if the image does
    /// not have it.
    #[arg(short = 'B', long, value_name = "SPEC", help_heading = "Mounts")]
    pub bind: Vec<String>,
    /// Bind a path of the host: type=bind,source=SRC,destination=DST, and ro for reading only
    ///
    /// A field that holds a comma stands between double quotes.
    #[arg(long, value_name = "SPEC", help_heading = "Mounts")]
    pub mount: Vec<String>,
    /// Use another home directory: SRC, or SRC:DST for another name inside
    #[arg(short = 'H', long, value_name = "SPEC", help_heading = "Mounts")]
    pub home: Option<String>,
    /// Do not mount the home directory
    #[arg(long, help_heading = "Mounts")]
    pub no_home: bool,
    /// Leave out default mounts: proc, sys, dev, devpts, home, tmp, cwd, bind-paths, or /etc/hosts, /etc/localtime
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Mounts")]
    pub no_mount: Vec<String>,
    /// Start in this directory of the container
    #[arg(long, visible_alias = "pwd", value_name = "DIR", help_heading = "Mounts")]
    pub cwd: Option<String>,
    /// Run this app of the image (SCIF), with its environment
    #[arg(long, value_name = "NAME")]
    pub app: Option<String>,
    /// Lay this over the image and keep changes in it: a directory, or an ext3 image; with :ro, or a squashfs, it is only
    /// read
    ///
    /// May be given several times, or with commas in between: the last that is read lies over those before it, and one at
    /// most is written to, which lies over all.
    #[arg(short = 'o', long, value_name = "PATH[:ro]", help_heading = "Writing")]
    pub overlay: Vec<String>,
    /// Write into the sandbox, or into the overlay partition of the SIF image; changes stay
    #[arg(short = 'w', long, help_heading = "Writing")]
    pub writable: bool,
    /// Allow writes, and forget them at the end
    #[arg(long, help_heading = "Writing")]
    pub writable_tmpfs: bool,
    /// With --writable-tmpfs, take at most so much memory: a number of bytes, alone or with K, M or G; half of all if not
    /// given
    #[arg(long, value_name = "SIZE", help_heading = "Writing")]
    pub writable_tmpfs_size: Option<String>,
    /// Be root inside, with the subordinate ids of /etc/subuid and /etc/subgid if there are any
    #[arg(short = 'f', long, help_heading = "Users")]
    pub fakeroot: bool,
    /// With --fakeroot, use no subordinate ids
    #[arg(long, hide = true)]
    pub ignore_subuid: bool,
    /// With --fakeroot and without subordinate ids, pretend no other users and owners
    #[arg(long, hide = true)]
    pub ignore_fakeroot_command: bool,
    /// With --fakeroot and without subordinate ids, fail
    #[arg(long, hide = true)]
    pub ignore_userns: bool,
    /// Do not pass the host's environment on
    #[arg(short = 'e', long, help_heading = "Environment")]
    pub cleanenv: bool,
    /// Set variables in the container: NAME=VALUE, several separated by commas
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Environment")]
    pub env: Vec<String>,
    /// Set the variables of these files in the container: lines of NAME=VALUE in the language of its shell
    #[arg(long, value_name = "FILE", value_delimiter = ',', help_heading = "Environment")]
    pub env_file: Vec<String>,
    /// Do not pass these variables of the host on
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = "Environment")]
    pub no_env: Vec<String>,
    /// Do not let the shell evaluate the values of --env
    #[arg(long, help_heading = "Environment")]
    pub no_eval: bool,
    /// GPUs
    #[command(flatten)]
    pub gpu: GpuFlags,
    /// What is seen of the host's files
    #[command(flatten)]
    pub contain: ContainFlags,
    /// What is not shared with the host
    #[command(flatten)]
    pub namespaces: NamespaceFlags,
    /// What other programs have
    #[command(flatten)]
    pub other: OtherFlags,
    /// How the image is served
    #[command(flatten)]
    pub daemon: DaemonFlags,
}
