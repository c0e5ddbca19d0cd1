//! Arguments of the commands that fetch from and send to registries, libraries and web servers.

use clap::{Args, Subcommand};
use std::path::PathBuf;

// Who we are towards registries, and how they are spoken to.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Registries")]
pub struct RegistryFlags {
    /// Take credentials from this file, of the form of docker's config.json, and from no other
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Ask for a name and a password
    #[arg(long)]
    pub docker_login: bool,
    /// The docker daemon to fetch docker-daemon: images from
    #[arg(long, value_name = "HOST", hide = true)]
    pub docker_host: Option<String>,
    /// The name to log in with, together with --docker-password
    #[arg(long, value_name = "NAME", hide = true)]
    pub docker_username: Option<String>,
    /// The password to log in with
    #[arg(long, value_name = "PASSWORD", hide = true)]
    pub docker_password: Option<String>,
    /// Ask over http in place of https; a registry on this machine is asked so anyway if it does not speak https
    #[arg(long, alias = "nohttps")]
    pub no_https: bool,
    /// The library that library:// means where it names no server
    #[arg(long, value_name = "URL")]
    pub library: Option<String>,
}

// `pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Replace the file if it exists
    #[arg(short = 'F', long)]
    pub force: bool,
    /// Put the file into this directory
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Call the file so
    #[arg(long, value_name = "NAME", hide = true)]
    pub name: Option<PathBuf>,
    /// For machines of which architecture, such as amd64 and arm64; this one's without it
    #[arg(long, value_name = "ARCH")]
    pub arch: Option<String>,
    /// Which of the architecture's variants, such as 6 and 7 of arm
    #[arg(long, value_name = "VARIANT")]
    pub arch_variant: Option<String>,
    /// Keep nothing but the file, and use nothing that was kept before
    #[arg(long)]
    pub disable_cache: bool,
    /// Make a writable directory over the image in place of a file; takes milliseconds
    #[arg(long)]
    pub sandbox: bool,
    /// Take an image that is not signed, as siphon always does
    #[arg(short = 'U', long, hide = true)]
    pub allow_unsigned: bool,
    /// Where to unpack; without effect, as nothing is unpacked
    #[arg(long, value_name = "DIR", hide = true)]
    pub tmpdir: Option<PathBuf>,
    /// Leave what a failed pull made; without effect, as it makes nothing
    #[arg(long, hide = true)]
    pub no_cleanup: bool,
    /// Make the same file each time, as siphon does with SOURCE_DATE_EPOCH
    #[arg(long, hide = true)]
    pub reproducible: bool,
    /// Registries and libraries
    #[command(flatten)]
    pub registry: RegistryFlags,
    /// The file to make, if it is to have another name than the image, and where the image is: docker://, docker-daemon:,
    /// oci:, oci-archive:, docker-archive:, oras://, library://, shub:// or http(s)://
    #[arg(value_name = "[OUTPUT] URI", required = true, num_args = 1..=2)]
    pub output_and_uri: Vec<String>,
}

// `push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// Send an image that is not signed, as siphon always does
    #[arg(short = 'U', long, hide = true)]
    pub allow_unsigned: bool,
    /// What the image is, for libraries; without effect
    #[arg(short = 'D', long, value_name = "TEXT", hide = true)]
    pub description: Option<String>,
    /// Something for the registry to keep with the image, for oras://
    #[arg(long, value_name = "KEY=VALUE")]
    pub annotation: Vec<String>,
    /// Registries and libraries
    #[command(flatten)]
    pub registry: RegistryFlags,
    /// The image file
    pub image: PathBuf,
    /// Where to send it: oras:// as it is, docker:// as an image of layers
    pub uri: String,
}

// `tag`.
#[derive(Debug, Args)]
pub struct TagArgs {
    /// Registries
    #[command(flatten)]
    pub registry: RegistryFlags,
    /// An oras:// image
    pub uri: String,
    /// Its further tag
    pub tag: String,
}

// Subcommands of `registry`.
#[derive(Debug, Subcommand)]
pub enum RegistryVerb {
    /// Keep a name and a password for a registry, which is asked whether it takes them
    Login(LoginArgs),
    /// Forget the password of a registry
    Logout(LogoutArgs),
    /// List the registries that passwords are kept for
    List(RegistryListArgs),
}

// `registry login`.
#[derive(Debug, Args)]
pub struct LoginArgs {
    /// The name
    #[arg(short, long, value_name = "NAME")]
    pub username: Option<String>,
    /// The password or token; others on this machine may see it, unlike with --password-stdin
    #[arg(short, long, value_name = "PASSWORD", conflicts_with = "password_stdin")]
    pub password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub password_stdin: bool,
    /// Keep it in this file
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Ask over http in place of https
    #[arg(long, alias = "nohttps")]
    pub no_https: bool,
    /// The registry: docker://HOST or oras://HOST
    pub uri: String,
}

// `registry logout`.
#[derive(Debug, Args)]
pub struct LogoutArgs {
    /// The file that it is kept in
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// The registry: docker://HOST or oras://HOST
    pub uri: String,
}

// `registry list`.
#[derive(Debug, Args)]
pub struct RegistryListArgs {
    /// The file to look into
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
}
