//! Why an image could not be found or opened.

use super::BASE_FILE;
use crate::blob::BlobError;
use crate::oci;
use crate::oras;
use crate::sys::ext;
use siphon_image::open;
use siphon_image::reference;
use siphon_image::tree;
use std::io;
use std::path::PathBuf;

/// An image could not be found or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path leads nowhere, or not to something readable.
    #[error("cannot open {path}")]
    Path {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no such file, and it does not look as if one was meant.
    #[error(
        "cannot open {name}: there is no such file, and images elsewhere are named docker://, oras://, library:// or \
         http(s)://, or oci:, oci-archive: or docker-archive: with a path{}",
        meant.as_deref().map(|meant| format!("; is {meant} meant?")).unwrap_or_default()
    )]
    NoSuchName {
        /// As it was given.
        name: String,
        /// A name that it may have been meant as.
        meant: Option<String>,
    },
    /// Neither a file nor a directory.
    #[error("{path} is neither an image file nor a directory")]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// The server did not give it.
    #[error("cannot open {url}")]
    Url {
        /// The URL.
        url: String,
        /// What happened.
        #[source]
        source: BlobError,
    },
    /// The name is one of an image elsewhere, and wrong.
    #[error("cannot understand the name {name}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: reference::Error,
    },
    /// What is there is no image file, and cannot be read as it is.
    #[error("{name} is no image file but layers; make a file of them: siphon pull {name}")]
    Unmade {
        /// The reference.
        name: String,
    },
    /// The registry or the library did not give it.
    #[error("cannot open {name}")]
    Elsewhere {
        /// The reference.
        name: String,
        /// What happened.
        #[source]
        source: oras::Error,
    },
    /// Someone writes to its ext3 file system.
    #[error(transparent)]
    InUse(#[from] ext::Error),
    /// The registry has no such OCI image, or it cannot be read.
    #[error("cannot open {name}")]
    Oci {
        /// The reference.
        name: String,
        /// What happened.
        #[source]
        source: Box<oci::Error>,
    },
    /// Its content is not an image.
    #[error("cannot read the image {image}")]
    Format {
        /// Path or URL.
        image: String,
        /// What is wrong with it.
        #[source]
        source: open::Error,
    },
    /// Its tree cannot be read.
    #[error("cannot read the files of {image}")]
    Tree {
        /// Path or URL.
        image: String,
        /// What is wrong.
        #[source]
        source: tree::Error,
    },
    /// A sandbox whose own record cannot be read.
    #[error("cannot read {BASE_FILE} of the sandbox {sandbox}")]
    Record {
        /// The directory.
        sandbox: PathBuf,
        /// What is wrong.
        #[source]
        source: siphon_overlay::error::Error,
    },
    /// A sandbox whose own files cannot be read.
    #[error("cannot use the layer of the sandbox {sandbox}")]
    Layer {
        /// The directory.
        sandbox: PathBuf,
        /// What is wrong.
        #[source]
        source: siphon_overlay::error::Error,
    },
    /// A sandbox whose base cannot be opened.
    #[error("the sandbox {sandbox} is a layer over {base}, which cannot be opened")]
    BaseGone {
        /// The directory.
        sandbox: PathBuf,
        /// What it names.
        base: String,
        /// Why that cannot be opened.
        #[source]
        source: Box<Error>,
    },
    /// A sandbox whose base is now another image.
    #[error(
        "the sandbox {sandbox} is a layer over {base}, which has changed since: it was {recorded} and is {found}; \
         put the former image back, or make a new sandbox"
    )]
    BaseChanged {
        /// The directory.
        sandbox: PathBuf,
        /// What it names.
        base: String,
        /// What the base was.
        recorded: String,
        /// What it is.
        found: String,
    },
}
