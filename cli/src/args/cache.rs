//! Arguments of `cache`.

use clap::{Args, Subcommand, ValueEnum};

// `cache`.
#[derive(Debug, Subcommand)]
pub enum CacheVerb {
    /// Remove what was kept of remote images
    Clean(CacheCleanArgs),
    /// List what was kept of remote images
    List(CacheListArgs),
    /// Show or set how many bytes are kept at most, beside what is pinned
    ///
    /// What was used longest ago goes first. It holds for all who use the same cache directory. SIPHON_CACHE_LIMIT sets it
    /// too. 32G unless set.
    Limit {
        /// A number, alone or with K, M or G
        size: Option<String>,
    },
}

/// Kinds of what singularity keeps. Siphon has five of them, and one of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CacheKind {
    /// Images of a container library
    Library,
    /// Images made from those of a registry
    Oci,
    /// Images of Singularity Hub
    Shub,
    /// Layers of images in a registry
    #[value(alias = "blobs")]
    Blob,
    /// What was read of images behind http and https
    Net,
    /// Images that a registry holds as files
    Oras,
    /// Layers of builds from recipes
    #[value(alias = "builds")]
    Build,
    /// All kinds
    All,
}

// `cache clean`.
#[derive(Debug, Args)]
pub struct CacheCleanArgs {
    /// Kinds to clean, separated by commas; siphon keeps net, oras, library, oci and build
    #[arg(short = 'T', long = "type", value_name = "LIST", value_delimiter = ',', default_value = "all")]
    pub kinds: Vec<CacheKind>,
    /// Only what was first fetched before so many days
    #[arg(short = 'D', long, value_name = "NUMBER")]
    pub days: Option<u64>,
    /// Show what would be removed, and remove nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}

// `cache list`.
#[derive(Debug, Args)]
pub struct CacheListArgs {
    /// Kinds to list, separated by commas; siphon keeps net, oras, library, oci and build
    #[arg(short = 'T', long = "type", value_name = "LIST", value_delimiter = ',', default_value = "all")]
    pub kinds: Vec<CacheKind>,
    /// One line for each image too
    #[arg(short, long)]
    pub verbose: bool,
    /// As JSON, each image with all of its URL
    #[arg(short, long)]
    pub json: bool,
}
