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
    /// Out of which image it comes, if the source is one.
    pub image: Option<ImageBind>,
    /// Whether a container that is started inside is not told of it.
    pub not_nested: bool,
}

/// What of an image appears inside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageBind {
    /// A path within it.
    pub inside: PathBuf,
    /// Which object of a SIF has it; the first with data if `None`.
    pub id: Option<u32>,
}

impl Default for ImageBind {
    /// All of it.
    fn default() -> Self {
        Self { inside: "/".into(), id: None }
    }
}

/// Why a bind cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BindError {
    /// An option that does not exist.
    #[error("while getting bind path: {0} is not a valid bind option; known are ro, rw, image-src=PATH and id=NUMBER")]
    Option(String),
    /// An object of an image that cannot be.
    #[error("while parsing id bind option: {0:?} is not a number from 1 on")]
    Id(String),
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
            if let (true, Some(bind)) = (last_had_options, binds.last_mut())
                && bind.set(&unescape(&item))?
            {
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
        let mut bind = Self {
            destination: destination.map_or_else(|| PathBuf::from(&source), PathBuf::from),
            source: source.into(),
            read_only: false,
            image: None,
            not_nested: false,
        };
        for word in fields.iter().skip(2).map(|word| unescape(word)) {
            if !bind.set(&word)? {
                return Err(BindError::Option(word));
            }
        }
        Ok(bind)
    }

    /// Takes an option; `false` if the word is none.
    fn set(&mut self, word: &str) -> Result<bool, BindError> {
        match word.split_once('=') {
            None if word == "ro" => self.read_only = true,
            None if word == "rw" => self.read_only = false,
            Some(("image-src", inside)) => self.set_inside(inside),
            Some(("id", number)) => self.set_id(number)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Has it come from `inside` the image that the source is.
    pub(super) fn set_inside(&mut self, inside: &str) {
        // As apptainer has it, the path is absolute and the empty one is the root.
        self.image.get_or_insert_default().inside = PathBuf::from("/").join(inside);
    }

    /// Has it come from this object of the image that the source is.
    ///
    /// # Errors
    /// [`BindError::Id`].
    pub(super) fn set_id(&mut self, number: &str) -> Result<(), BindError> {
        let id = number.parse().ok().filter(|id| *id > 0).ok_or_else(|| BindError::Id(number.to_owned()))?;
        self.image.get_or_insert_default().id = Some(id);
        Ok(())
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
        Bind { source: source.into(), destination: destination.into(), read_only, image: None, not_nested: false }
    }

    fn out_of(image: &str, inside: &str, id: Option<u32>) -> Bind {
        Bind { image: Some(ImageBind { inside: inside.into(), id }), ..bind(image, "/x", false) }
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
            ("a.sif:/x:image-src=/in,id=2", vec![out_of("a.sif", "/in", Some(2))]),
            ("a.sif:/x:id=2,image-src=in", vec![out_of("a.sif", "/in", Some(2))]),
            ("a.sif:/x:image-src=", vec![out_of("a.sif", "/", None)]),
            ("a.sif:/x:image-src=/a\\,b", vec![out_of("a.sif", "/a,b", None)]),
            ("a.sif:/x:id=3,/c", vec![out_of("a.sif", "/", Some(3)), bind("/c", "/c", false)]),
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
        for id in ["x", "0", "-1", ""] {
            assert_eq!(Bind::parse_list(&format!("/a:/b:id={id}")), Err(BindError::Id(id.into())));
        }
    }
}
