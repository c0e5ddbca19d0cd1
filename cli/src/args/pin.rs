//! Arguments of `pin`.

use clap::Args;

// `pin`.
#[derive(Debug, Args)]
pub struct PinArgs {
    /// Let it go again: what is cached of it may be evicted, and its server is asked
    #[arg(short, long, conflicts_with = "list")]
    pub unpin: bool,
    /// List what is pinned
    #[arg(short, long, conflicts_with = "image")]
    pub list: bool,
    /// Fetch it in the background
    #[arg(short, long, conflicts_with_all = ["unpin", "list"])]
    pub background: bool,
    /// The image: docker://, oras://, library://, shub:// or http(s)://. A tag then means what it meant when it was
    /// pinned, until --unpin
    #[arg(required_unless_present = "list")]
    pub image: Option<String>,
}
