//! What an image says of itself, written when its sections have run: scripts, labels, the recipe, and the history.

use super::definition::Script;
use super::root::Root;
use crate::report::Report;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use siphon_image::oci::own::date;
use std::collections::BTreeMap;
use std::path::Path;

/// Labels of an image, and what `%post` writes of them.
const MAX_LABEL_BYTES: u64 = 1 << 20;
/// The environment of an image.
const MAX_ENVIRONMENT_BYTES: u64 = 16 << 20;
const DEFFILE: &str = ".singularity.d/Singularity";
const HISTORY: &str = ".singularity.d/bootstrap_history";
const LABELS: &str = ".singularity.d/labels.json";
/// What `%post` knows as `$APPTAINER_LABELS`.
pub(super) const POST_LABELS: &str = ".build.labels";

/// What is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Finish {
    /// The whole recipe.
    pub(super) recipe: String,
    /// `%help`, if it is wanted.
    pub(super) help: Option<String>,
    /// `%labels`, if they are wanted.
    pub(super) labels: BTreeMap<String, String>,
    /// `%environment`, if it is wanted.
    pub(super) environment: Option<String>,
    /// The scripts by their names, each with its first line.
    pub(super) scripts: Vec<(String, String)>,
    /// The header, unless the sandbox was there before.
    pub(super) header: BTreeMap<String, String>,
    /// Whether what is there already is replaced.
    pub(super) force: bool,
    /// What the image runs on.
    pub(super) architecture: String,
    /// When, in seconds since 1970.
    pub(super) seconds: u32,
}

/// A script as it lies in the image: its own first line if that names an interpreter, else `/bin/sh`, and the section's
/// arguments behind it.
pub(super) fn with_interpreter(script: &Script) -> String {
    let (mut first, mut body) = ("#!/bin/sh", script.text.as_str());
    if script.text.trim_start().starts_with("#!") {
        let (line, rest) = script.text.split_once('\n').unwrap_or((&script.text, ""));
        (first, body) = (line.trim(), rest);
    }
    let blank = if script.arguments.is_empty() { "" } else { " " };
    format!("{first}{blank}{}\n\n{body}\n", script.arguments)
}

/// Writes all of it.
pub(super) fn finish(root: &Root, what: &Finish, report: Report) -> anyhow::Result<()> {
    if let Some(help) = &what.help {
        let path = ".singularity.d/runscript.help";
        if root.kind(Path::new(path))?.is_none() || what.force {
            report.info("Adding help info");
            root.put(path, format!("{help}\n").as_bytes(), 0o644)?;
        } else {
            report.warning("Help message already exists and force option is false, not overwriting");
        }
    }
    labels(root, what, report)?;
    recipe(root, what)?;
    if let Some(text) = &what.environment {
        report.info("Adding environment to container");
        let path = ".singularity.d/env/90-environment.sh";
        let before = root.read(path, MAX_ENVIRONMENT_BYTES)?.unwrap_or_else(|| b"#!/bin/sh\n".to_vec());
        root.put(path, &[&before[..], b"\n", text.as_bytes(), b"\n"].concat(), 0o755)?;
    }
    for (name, text) in &what.scripts {
        report.info(format_args!("Adding {}", if name == "test" { "testscript" } else { name }));
        root.put(format!(".singularity.d/{name}"), text.as_bytes(), 0o755)?;
    }
    Ok(())
}

/// The recipe before this one goes to the history.
fn recipe(root: &Root, what: &Finish) -> anyhow::Result<()> {
    if root.kind(Path::new(DEFFILE))?.is_some() {
        root.make_directory(Path::new(HISTORY), 0o755)?;
        let names = root.names(Path::new(HISTORY));
        let free = (names.len()..).map(|number| format!("Apptainer{number}"));
        let mut free = free.filter(|name| !names.iter().any(|known| known == name.as_str()));
        let name = free.next().context("numbers do not end")?;
        root.rename(DEFFILE, &format!("{HISTORY}/{name}"))?;
    }
    root.put(DEFFILE, what.recipe.as_bytes(), 0o644)
}

fn labels(root: &Root, what: &Finish, report: Report) -> anyhow::Result<()> {
    let text = root.read(LABELS, MAX_LABEL_BYTES)?.unwrap_or_default();
    // What is no JSON object is no label: the base's own matter, and nothing to fail for.
    let mut labels: BTreeMap<String, String> = match serde_json::from_slice(&text) {
        Ok(labels) => labels,
        Err(_) if text.is_empty() => BTreeMap::new(),
        Err(error) => {
            report.warning(format_args!("the labels of the base are left out: {error}"));
            BTreeMap::new()
        }
    };
    if let Some(written) = root.read(POST_LABELS, MAX_LABEL_BYTES)? {
        labels.extend(super::definition::labels(&String::from_utf8_lossy(&written)));
        root.remove(POST_LABELS)?;
    }
    labels.extend(automatic(what));
    if !what.labels.is_empty() {
        report.info("Adding labels");
    }
    for (name, value) in &what.labels {
        if labels.contains_key(name) && !what.force {
            report.warning(format_args!("Label: {name} already exists and force option is false, not overwriting"));
        } else {
            labels.insert(name.clone(), value.clone());
        }
    }
    root.put(LABELS, crate::report::json_with_tabs(&labels)?.as_bytes(), 0o644)
}

fn automatic(what: &Finish) -> Vec<(String, String)> {
    let help = "/.singularity.d/runscript.help";
    let mut labels = vec![
        ("schema-version".to_owned(), "1.0".to_owned()),
        ("build-arch".to_owned(), what.architecture.clone()),
        ("build-date".to_owned(), date(what.seconds)),
        ("usage.siphon.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ];
    if what.help.is_some() {
        labels.push(("usage".to_owned(), help.to_owned()));
        labels.push(("usage.singularity.runscript.help".to_owned(), help.to_owned()));
    }
    let header = what.header.iter().map(|(key, value)| (format!("usage.singularity.deffile.{key}"), value.clone()));
    labels.extend(header);
    labels.into_iter().map(|(name, value)| (format!("org.label-schema.{name}"), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_keeps_the_interpreter_that_it_names() {
        let cases = [
            ("  echo x\n", "", "#!/bin/sh\n\n  echo x\n\n"),
            ("#!/bin/bash\necho x\n", "", "#!/bin/bash\n\necho x\n\n"),
            ("  #!/usr/bin/python3\nprint()\n", "-u", "#!/usr/bin/python3 -u\n\nprint()\n\n"),
            ("echo\n", "-e", "#!/bin/sh -e\n\necho\n\n"),
        ];
        for (text, arguments, expected) in cases {
            let script = Script { text: text.into(), arguments: arguments.into() };
            assert_eq!(with_interpreter(&script), expected);
        }
    }
}
