//! The syntax of `--bind`: `SRC[:DST[:OPTION[,OPTION]]]`, several separated by commas, `\:` and `\,` for themselves.

use std::path::PathBuf;

/// A path of the host that is to appear inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the host; made absolute by whoever knows the working directory.
    pub source: PathBuf,
    /// Inside; the same as the source unless given.
    pub destination: PathBuf,
    /// Whether writes fail.
    pub read_only: bool,
}

/// Why a bind cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BindError {
    /// An option that does not exist.
    #[error("while getting bind path: {0} is not a valid bind option; known are ro and rw")]
    Option(String),
    /// An option of image binds.
    #[error(
        "bind option {0} (a bind out of another image) is not supported yet; mount that image with \"siphon mount\" and bind the directory"
    )]
    ImageBind(String),
    /// A `--mount` that cannot be read.
    #[error("while parsing mount {line:?}: {reason}")]
    Mount {
        /// The specification.
        line: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No source.
    #[error("bind {0:?} has no source path")]
    NoSource(String),
    /// A destination that is not absolute.
    #[error("bind destination {0:?} is not an absolute path")]
    Destination(String),
}

impl Bind {
    /// Reads a comma-separated list. A comma is also what separates options: `a:b:ro,c` is two binds and `a:b:ro,rw`
    /// is one, as a word after an option that is itself an option belongs to the bind before it.
    ///
    /// # Errors
    /// [`BindError`] for the first bind that cannot be read.
    pub fn parse_list(list: &str) -> Result<Vec<Self>, BindError> {
        let mut binds: Vec<Self> = Vec::new();
        let mut last_had_options = false;
        for item in split_unescaped(list, ',') {
            if item.is_empty() {
                continue;
            }
            if let (true, Some(bind), Some(read_only)) = (last_had_options, binds.last_mut(), option(&item)) {
                bind.read_only = read_only;
                continue;
            }
            let fields = split_unescaped(&item, ':');
            last_had_options = fields.len() > 2;
            binds.push(Self::from_fields(&item, &fields)?);
        }
        Ok(binds)
    }

    fn from_fields(item: &str, fields: &[String]) -> Result<Self, BindError> {
        let source = unescape(&fields[0]);
        if source.is_empty() {
            return Err(BindError::NoSource(item.to_owned()));
        }
        let destination = fields.get(1).map(|field| unescape(field)).filter(|path| !path.is_empty());
        if let Some(path) = destination.as_ref().filter(|path| !path.starts_with('/')) {
            return Err(BindError::Destination(path.clone()));
        }
        let mut read_only = false;
        for word in fields.iter().skip(2) {
            read_only = match option(word) {
                Some(read_only) => read_only,
                None if word.starts_with("image-src=") || word.starts_with("id=") => {
                    return Err(BindError::ImageBind(word.clone()));
                }
                None => return Err(BindError::Option(word.clone())),
            };
        }
        Ok(Self {
            destination: destination.map_or_else(|| PathBuf::from(&source), PathBuf::from),
            source: source.into(),
            read_only,
        })
    }
}

/// The binds whose destination none before them has, as apptainer has it, with a warning for each other one.
pub(super) fn without_repeated_destinations(binds: Vec<Bind>, warnings: &mut Vec<String>) -> Vec<Bind> {
    let mut kept: Vec<Bind> = Vec::new();
    for bind in binds {
        if kept.iter().any(|other| other.destination == bind.destination) {
            let (source, destination) = (bind.source.display(), bind.destination.display());
            warnings.push(format!(
                "While bind mounting '{source}:{destination}': destination is already in the mount point list"
            ));
        } else {
            kept.push(bind);
        }
    }
    kept
}

fn option(word: &str) -> Option<bool> {
    match word {
        "ro" => Some(true),
        "rw" => Some(false),
        _ => None,
    }
}

fn split_unescaped(text: &str, separator: char) -> Vec<String> {
    let (mut parts, mut current, mut escaped) = (Vec::new(), String::new(), false);
    for character in text.chars() {
        if character == separator && !escaped {
            parts.push(std::mem::take(&mut current));
        } else {
            current.push(character);
        }
        escaped = character == '\\' && !escaped;
    }
    parts.push(current);
    parts
}

fn unescape(text: &str) -> String {
    text.replace("\\:", ":").replace("\\,", ",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &str, destination: &str, read_only: bool) -> Bind {
        Bind { source: source.into(), destination: destination.into(), read_only }
    }

    #[test]
    fn of_two_binds_to_one_destination_the_first_stays() {
        let mut warnings = Vec::new();
        let binds = vec![bind("/a", "/x", false), bind("/b", "/y", false), bind("/c", "/x", true)];

        let kept = without_repeated_destinations(binds, &mut warnings);

        assert_eq!(kept, [bind("/a", "/x", false), bind("/b", "/y", false)]);
        assert_eq!(warnings, ["While bind mounting '/c:/x': destination is already in the mount point list"]);
    }

    #[test]
    fn binds_are_read_as_singularity_reads_them() {
        let cases = [
            ("/a", vec![bind("/a", "/a", false)]),
            ("/a:/b", vec![bind("/a", "/b", false)]),
            ("/a:/b:ro", vec![bind("/a", "/b", true)]),
            ("/a:/b:ro,/c:/d:rw", vec![bind("/a", "/b", true), bind("/c", "/d", false)]),
            ("/a:/b:ro,rw", vec![bind("/a", "/b", false)]),
            ("/a,/c", vec![bind("/a", "/a", false), bind("/c", "/c", false)]),
            ("/a\\:b:/c", vec![bind("/a:b", "/c", false)]),
            ("/a\\,b", vec![bind("/a,b", "/a,b", false)]),
            ("rel:/x", vec![bind("rel", "/x", false)]),
        ];
        for (list, expected) in cases {
            assert_eq!(Bind::parse_list(list), Ok(expected), "{list}");
        }
    }

    #[test]
    fn a_bind_that_makes_no_sense_is_refused() {
        assert_eq!(Bind::parse_list("/a:/b:zz"), Err(BindError::Option("zz".into())));
        assert_eq!(Bind::parse_list("/a:b"), Err(BindError::Destination("b".into())));
        assert_eq!(Bind::parse_list(":/b"), Err(BindError::NoSource(":/b".into())));
        assert!(matches!(Bind::parse_list("/a:/b:image-src=/"), Err(BindError::ImageBind(_))));
    }
}
