//! Names of images that are elsewhere, as users write them: `docker://`, `oras://`, `library://`, `shub://`, `http(s)://`.
//!
//! What is between two registries is the distribution specification's, with docker's defaults: no host is `docker.io`, one
//! word there is `library/word`, no tag is `latest`.

use std::fmt;

pub use oci_spec::distribution::ParseError;

/// The schemes, as they are written.
const SCHEMES: [&str; 6] = ["docker", "oras", "library", "shub", "http", "https"];
/// No name is longer: a URL with a signature takes a few kilobytes.
const MAX_NAME_BYTES: usize = 8192;
/// Where a library keeps what has no owner, and no collection.
const LIBRARY_DEFAULTS: [&str; 2] = ["library", "default"];
/// The tag of what has none.
const LATEST: &str = "latest";

/// An image that is elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// An OCI image in a registry.
    Docker(Repository),
    /// A file in a registry.
    Oras(Repository),
    /// An image of a container library.
    Library(LibraryName),
    /// An image of Singularity Hub, by what follows the scheme.
    Shub(String),
    /// A file of a web server, by its URL.
    Web(String),
}

/// A repository of a registry, and what of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    name: oci_spec::distribution::Reference,
}

/// An image of a container library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibraryName {
    /// The server, where it is named.
    pub host: Option<String>,
    /// `entity/collection/container`.
    pub path: String,
    /// The tag.
    pub tag: String,
}

/// A name cannot be understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The part that names the registry, the repository, the tag or the digest.
    #[error("{0:?} is no name of an image in a registry: HOST/PATH:TAG or HOST/PATH@DIGEST")]
    Repository(String, #[source] ParseError),
    /// The path in a library.
    #[error("{0:?} is no name of an image in a library: ENTITY/COLLECTION/CONTAINER:TAG")]
    Library(String),
    /// Longer than anything real.
    #[error("the name of the image has more than {MAX_NAME_BYTES} bytes")]
    Long,
}

impl Reference {
    /// Reads a name; `None` if it has none of the schemes, and so is a path.
    ///
    /// # Errors
    /// [`Error`] if it has one, and what follows cannot be understood.
    pub fn parse(name: &str) -> Result<Option<Self>, Error> {
        let Some((scheme, rest)) = split(name) else { return Ok(None) };
        if name.len() > MAX_NAME_BYTES {
            return Err(Error::Long);
        }
        Ok(Some(match scheme {
            "docker" => Self::Docker(Repository::parse(rest)?),
            "oras" => Self::Oras(Repository::parse(rest)?),
            "library" => Self::Library(LibraryName::parse(rest)?),
            "shub" => Self::Shub(rest.to_owned()),
            _ => Self::Web(name.to_owned()),
        }))
    }

    /// The name of the file that a pull makes of it, where none is given: `IMAGE_TAG.sif`, or the last part of a URL.
    /// `None` if there is nothing to make one of.
    pub fn file_name(&self) -> Option<String> {
        let whole = self.to_string();
        let (_, rest) = split(&whole)?;
        if let Self::Web(_) = self {
            let path = rest.split(['?', '#']).next().unwrap_or_default();
            let (_, last) = path.rsplit_once('/')?;
            return Some(last.to_owned()).filter(|last| is_file_name(last));
        }
        let last = rest.rsplit('/').next().unwrap_or_default();
        let mut parts = last.split(':');
        let container = parts.next().unwrap_or_default();
        let tag = parts.next().and_then(|tags| tags.split(',').next()).unwrap_or(LATEST);
        let has_name = !container.is_empty() && !container.starts_with('.');
        Some(format!("{container}_{tag}.sif")).filter(|name| has_name && is_file_name(name))
    }
}

impl fmt::Display for Reference {
    /// As a user may write it, and with the defaults left out that the user left out, except for a tag.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Docker(repository) => write!(f, "docker://{repository}"),
            Self::Oras(repository) => write!(f, "oras://{repository}"),
            Self::Library(name) => write!(f, "library://{name}"),
            Self::Shub(rest) => write!(f, "shub://{rest}"),
            Self::Web(url) => f.write_str(url),
        }
    }
}

/// The scheme of a name, and what follows it.
fn split(name: &str) -> Option<(&'static str, &str)> {
    SCHEMES.into_iter().find_map(|scheme| Some((scheme, name.strip_prefix(scheme)?.strip_prefix("://")?)))
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

impl Repository {
    /// Reads what follows the scheme.
    ///
    /// # Errors
    /// [`Error::Repository`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let name = text.trim_start_matches('/');
        let name = name.parse().map_err(|source| Error::Repository(text.to_owned(), source))?;
        Ok(Self { name })
    }

    /// The registry, with its port if it has one: `docker.io` if none was named.
    pub fn registry(&self) -> &str {
        self.name.registry()
    }

    /// The path in the registry.
    pub fn path(&self) -> &str {
        self.name.repository()
    }

    /// The tag; `None` if there is a digest and no tag.
    pub fn tag(&self) -> Option<&str> {
        self.name.tag()
    }

    /// The digest.
    pub fn digest(&self) -> Option<&str> {
        self.name.digest()
    }

    /// What a registry is asked for: the digest if there is one, else the tag.
    pub fn version(&self) -> &str {
        self.digest().or(self.tag()).unwrap_or(LATEST)
    }

    /// The same repository, and another tag of it.
    ///
    /// # Errors
    /// [`Error::Repository`] if that cannot be a tag.
    pub fn with_tag(&self, tag: &str) -> Result<Self, Error> {
        Self::parse(&format!("{}/{}:{tag}", self.registry(), self.path()))
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tag = self.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = self.digest().map(|digest| format!("@{digest}")).unwrap_or_default();
        write!(f, "{}/{}{tag}{digest}", self.registry(), self.path())
    }
}

impl LibraryName {
    fn parse(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Library(text.to_owned());
        let words: Vec<&str> = text.trim_start_matches('/').split('/').collect();
        let is_host = |word: &str| word.contains(['.', ':']) || word == "localhost";
        let (host, path) = match words.split_first() {
            Some((first, path)) if !path.is_empty() && (words.len() == 4 || is_host(first)) => (Some(*first), path),
            _ => (None, words.as_slice()),
        };
        let (last, above) = path.split_last().ok_or_else(wrong)?;
        let (container, tag) = last.split_once(':').unwrap_or((last, LATEST));
        let missing = LIBRARY_DEFAULTS.len().checked_sub(above.len()).ok_or_else(wrong)?;
        // Of two defaults the owner is missing before the collection is.
        let defaults = if missing == 2 { &LIBRARY_DEFAULTS[..] } else { &LIBRARY_DEFAULTS[..missing] };
        let path: Vec<&str> = defaults.iter().chain(above).chain([&container]).copied().collect();
        let plain = |word: &&str| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        let real = |word: &&str| !word.is_empty() && *word != "." && *word != "..";
        let is_plain = path.iter().all(|word| plain(word) && real(word));
        let tag = tag.split(',').next().filter(|tag| plain(tag) && real(tag)).ok_or_else(wrong)?;
        let host_is_plain =
            host.is_none_or(|host| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte)));
        if !is_plain || !host_is_plain {
            return Err(wrong());
        }
        Ok(Self { host: host.map(str::to_owned), path: path.join("/"), tag: tag.to_owned() })
    }
}

impl fmt::Display for LibraryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host.as_ref().map(|host| format!("{host}/")).unwrap_or_default();
        write!(f, "{host}{}:{}", self.path, self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str) -> Reference {
        Reference::parse(name).unwrap().unwrap()
    }

    #[test]
    fn a_name_in_a_registry_has_the_defaults_of_docker() {
        let cases = [
            ("docker://alpine", "docker.io", "library/alpine", "latest"),
            ("docker://library/alpine:3", "docker.io", "library/alpine", "3"),
            ("docker://user/tool", "docker.io", "user/tool", "latest"),
            ("docker://index.docker.io/user/tool", "docker.io", "user/tool", "latest"),
            ("docker://localhost:5000/a/b/c:v1", "localhost:5000", "a/b/c", "v1"),
            ("oras://127.0.0.1:81/x:y", "127.0.0.1:81", "x", "y"),
        ];
        for (name, registry, path, version) in cases {
            let (Reference::Docker(found) | Reference::Oras(found)) = parse(name) else { panic!("{name}") };

            assert_eq!((found.registry(), found.path(), found.version()), (registry, path, version), "{name}");
        }
    }

    #[test]
    fn a_digest_counts_before_a_tag() {
        let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
        let Reference::Docker(found) = parse(&format!("docker://quay.io/a/b:tag@{digest}")) else { panic!() };

        assert_eq!((found.version(), found.tag()), (digest.as_str(), Some("tag")));
        assert_eq!(found.with_tag("other").unwrap().to_string(), "quay.io/a/b:other");
    }

    #[test]
    fn a_path_is_no_reference() {
        for path in ["a.sif", "/a/b", "docker:/x", "ftp://host/x", "instance://x", "docker-archive:x"] {
            assert_eq!(Reference::parse(path), Ok(None), "{path}");
        }
    }

    #[test]
    fn what_no_registry_could_have_is_refused() {
        for wrong in ["docker://", "docker://a/UPPER", "oras://a/b:t:t", "docker://a/../b", "docker://a@sha256:12"] {
            assert!(matches!(Reference::parse(wrong), Err(Error::Repository(..))), "{wrong}");
        }
        for wrong in ["library://a/b/../c", "library://", "library://h/a/b/c/d", "library://a:b/c?d"] {
            assert!(matches!(Reference::parse(wrong), Err(Error::Library(_))), "{wrong}");
        }
        assert_eq!(Reference::parse(&format!("https://h/{}", "x".repeat(MAX_NAME_BYTES))), Err(Error::Long));
    }

    #[test]
    fn a_library_fills_in_what_is_missing() {
        let cases = [
            ("library://alpine", "library://library/default/alpine:latest"),
            ("library://col/alpine:1", "library://library/col/alpine:1"),
            ("library://e/c/alpine:1,2", "library://e/c/alpine:1"),
            ("library://localhost:80/e/c/a", "library://localhost:80/e/c/a:latest"),
            ("library://host/e/c/a:t", "library://host/e/c/a:t"),
        ];
        for (name, whole) in cases {
            assert_eq!(parse(name).to_string(), whole);
            assert_eq!(parse(whole), parse(name));
        }
    }

    #[test]
    fn a_file_is_named_as_apptainer_names_it() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let cases = [
            ("docker://alpine".to_owned(), "alpine_latest.sif".to_owned()),
            ("docker://a/b/tool:1.2".to_owned(), "tool_1.2.sif".to_owned()),
            (format!("docker://a/tool@{digest}"), format!("tool@sha256_{}.sif", "ab".repeat(32))),
            ("oras://h:1/x:y".to_owned(), "x_y.sif".to_owned()),
            ("library://e/c/x".to_owned(), "x_latest.sif".to_owned()),
            ("shub://a/b:c".to_owned(), "b_c.sif".to_owned()),
            ("https://h/d/x.img?sig=1".to_owned(), "x.img".to_owned()),
        ];
        for (name, file) in cases {
            assert_eq!(parse(&name).file_name(), Some(file), "{name}");
        }
        for nameless in ["https://h/", "https://h/a/..", "shub://.x:y", "https://h"] {
            assert_eq!(parse(nameless).file_name(), None, "{nameless}");
        }
    }
}
