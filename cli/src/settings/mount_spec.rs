//! The syntax of `--mount`: `type=bind,source=SRC,destination=DST[,ro]`, a line of CSV with quotes where a field holds a
//! comma; several lines are several mounts.

use super::binds::{Bind, BindError};
use std::path::PathBuf;

/// Reads all mounts of `text`.
///
/// # Errors
/// [`BindError`] for the first that cannot be read.
pub(super) fn parse(text: &str) -> Result<Vec<Bind>, BindError> {
    text.lines().filter(|line| !line.trim().is_empty()).map(parse_line).collect()
}

fn parse_line(line: &str) -> Result<Bind, BindError> {
    let refused = |reason: String| BindError::Mount { line: line.to_owned(), reason };
    let (mut source, mut destination, mut read_only, mut not_nested) = (None, None, false, false);
    let (mut inside, mut id) = (None, None);
    for field in fields(line).map_err(|reason| refused(reason.into()))? {
        let (key, value) = field.split_once('=').unwrap_or((&field, ""));
        match key {
            "type" if value == "bind" => {}
            "type" => return Err(refused(format!("unsupported mount type {value:?}, only 'bind' is supported"))),
            "source" | "src" => source = Some(value.to_owned()),
            "destination" | "dst" | "target" => destination = Some(value.to_owned()),
            // As singularity has it, whatever the value.
            "ro" | "readonly" => read_only = true,
            "nonested" => not_nested = true,
            "image-src" => inside = Some(value.to_owned()),
            "id" => id = Some(value.to_owned()),
            _ => return Err(refused(format!("invalid key {key:?} in mount specification"))),
        }
    }
    let (Some(source), Some(destination)) = (source.filter(|path| !path.is_empty()), destination) else {
        return Err(refused("mounts must specify a source and a destination".into()));
    };
    if !destination.starts_with('/') {
        return Err(BindError::Destination(destination));
    }
    let destination = PathBuf::from(destination);
    let mut bind = Bind { source: source.into(), destination, read_only, image: None, not_nested };
    if let Some(inside) = inside {
        bind.set_inside(&inside);
    }
    if let Some(id) = id {
        bind.set_id(&id)?;
    }
    Ok(bind)
}

/// The fields of a line. A quote stands doubled within quotes.
fn fields(line: &str) -> Result<Vec<String>, &'static str> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => return Err("a quoted field goes on behind its closing quote"),
        }
    }
}

/// A field without its quotes, and what follows the closing one.
fn quoted_field(text: &str) -> Result<(String, &str), &'static str> {
    let (mut field, mut rest) = (String::new(), text);
    loop {
        let end = rest.find('"').ok_or("a quoted field is not closed")?;
        field.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                field.push('"');
                rest = after;
            }
            None => return Ok((field, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::ImageBind;

    #[test]
    fn mounts_are_read_as_singularity_reads_them() {
        let bind = |source: &str, destination: &str, read_only| Bind {
            source: source.into(),
            destination: destination.into(),
            read_only,
            image: None,
            not_nested: false,
        };
        let out_of = |inside: &str, id| Bind {
            image: Some(ImageBind { inside: inside.into(), id }),
            ..bind("a.sif", "/b", false)
        };
        let cases = [
            ("type=bind,source=/a,destination=/b", vec![bind("/a", "/b", false)]),
            ("src=/a,dst=/b,ro", vec![bind("/a", "/b", true)]),
            ("type=bind,src=/a,target=/b,readonly=true", vec![bind("/a", "/b", true)]),
            ("type=bind,\"src=/a,b\",dst=/c", vec![bind("/a,b", "/c", false)]),
            ("\"src=/a\"\"b\",dst=/c", vec![bind("/a\"b", "/c", false)]),
            ("src=/a,dst=/b\n\nsrc=/c,dst=/d", vec![bind("/a", "/b", false), bind("/c", "/d", false)]),
            ("src=a.sif,dst=/b,image-src=/in,id=2", vec![out_of("/in", Some(2))]),
            ("src=/a,dst=/b,nonested", vec![Bind { not_nested: true, ..bind("/a", "/b", false) }]),
            ("id=2,src=a.sif,dst=/b", vec![out_of("/", Some(2))]),
            ("", vec![]),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_mount_that_makes_no_sense_is_refused_by_name() {
        let cases = [
            ("type=tmpfs,dst=/w", "unsupported mount type \"tmpfs\""),
            ("type=bind,dst=/w", "must specify a source and a destination"),
            ("type=bind,src=/a", "must specify a source and a destination"),
            ("type=bind,src=/a,dst=/b,foo=bar", "invalid key \"foo\""),
            ("\"src=/a,dst=/b", "not closed"),
            ("\"src=/a\"x,dst=/b", "closing quote"),
            ("src=/a,dst=b", "not an absolute path"),
            ("src=/a,dst=/b,id=x", "is not a number"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
