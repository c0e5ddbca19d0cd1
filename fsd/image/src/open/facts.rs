//! What an image says of itself: the files under `/.singularity.d`, and a few others that running it depends on.
//!
//! All of it is the image's word: text of any content, for a shell or a person to read, never a path to open.

use crate::path::{read_file, resolve};
use crate::tree::{self, Kind, Tree};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes of one file that is read; a larger one is treated as if it were not there.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Environment scripts that are read; apptainer itself writes eight.
const MAX_ENV_SCRIPTS: usize = 256;
/// SCIF apps that are listed.
const MAX_APPS: usize = 4096;
/// Where the environment scripts lie.
const ENV_DIRECTORY: &str = "/.singularity.d/env";
/// Where SCIF apps lie.
const APPS_DIRECTORY: &str = "/scif/apps";

/// What an image says of itself. Text that is not UTF-8 has replacement characters in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Whether `/bin/sh` is there.
    pub has_shell: bool,
    /// Scripts to source before anything runs, in order. Of very old images, `/environment` alone.
    pub env_scripts: Vec<Script>,
    /// `/.singularity.d/runscript`.
    pub runscript: Option<String>,
    /// `/.singularity.d/startscript`.
    pub startscript: Option<String>,
    /// `/.singularity.d/test`.
    pub test: Option<String>,
    /// `/.singularity.d/runscript.help`.
    pub helpfile: Option<String>,
    /// `/.singularity.d/labels.json`.
    pub labels: BTreeMap<String, String>,
    /// `/.singularity.d/Singularity`: the definition file.
    pub deffile: Option<String>,
    /// `/.singularity.d/env/90-environment.sh`: the definition file's `%environment`.
    pub environment: Option<String>,
    /// `/etc/passwd`.
    pub passwd: Option<String>,
    /// `/etc/group`.
    pub group: Option<String>,
    /// Names of the SCIF apps under `/scif/apps`.
    pub apps: Vec<String>,
}

/// A script to source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// File name, such as `90-environment.sh`.
    pub name: String,
    /// Content.
    pub text: String,
}

/// Reads what `tree` says of itself. What is missing, unreadable or larger than 1 MiB is left out.
///
/// # Errors
/// If the root directory itself cannot be read.
pub fn facts(tree: &dyn Tree) -> Result<Facts, tree::Error> {
    tree.attr(tree.root())?;
    let meta = |name: &str| text(tree, &format!("/.singularity.d/{name}"));
    Ok(Facts {
        has_shell: kind_of(tree, "/bin/sh") == Some(Kind::File),
        env_scripts: env_scripts(tree),
        runscript: meta("runscript"),
        startscript: meta("startscript"),
        test: meta("test"),
        helpfile: meta("runscript.help"),
        labels: meta("labels.json").map(|json| labels(&json)).unwrap_or_default(),
        deffile: meta("Singularity"),
        environment: meta("env/90-environment.sh"),
        passwd: text(tree, "/etc/passwd"),
        group: text(tree, "/etc/group"),
        apps: apps(tree),
    })
}

/// What the SCIF app `name` says of itself, in the files under `/scif/apps/NAME/scif`. Of an app that is not there, and
/// of what an app does not have, nothing.
pub fn app_facts(tree: &dyn Tree, name: &str) -> Facts {
    let meta = |file: &str| text(tree, &format!("{APPS_DIRECTORY}/{name}/scif/{file}"));
    let environment = meta("env/90-environment.sh");
    Facts {
        env_scripts: environment
            .iter()
            .map(|text| Script { name: "90-environment.sh".into(), text: text.clone() })
            .collect(),
        runscript: meta("runscript"),
        startscript: meta("startscript"),
        test: meta("test"),
        helpfile: meta("runscript.help"),
        labels: meta("labels.json").map(|json| labels(&json)).unwrap_or_default(),
        environment,
        ..Facts::default()
    }
}

fn text(tree: &dyn Tree, path: &str) -> Option<String> {
    let bytes = read_file(tree, Path::new(path), MAX_FILE_BYTES).ok().flatten()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn kind_of(tree: &dyn Tree, path: &str) -> Option<Kind> {
    let node = resolve(tree, Path::new(path), true).ok()?.node?;
    Some(tree.attr(node).ok()?.kind)
}

/// The sorted names in a directory; `None` if it is not there.
fn names(tree: &dyn Tree, path: &str) -> Option<Vec<String>> {
    let node = resolve(tree, Path::new(path), true).ok()?.node?;
    let mut entries = tree.entries(node).ok()?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    // A name that is not UTF-8 could not be found again under what it is replaced by.
    Some(
        entries.iter().filter_map(|entry| std::str::from_utf8(entry.name.as_bytes()).ok().map(str::to_owned)).collect(),
    )
}

fn env_scripts(tree: &dyn Tree) -> Vec<Script> {
    let read = |name: &str, path: &str| text(tree, path).map(|text| Script { name: name.to_owned(), text });
    let Some(names) = names(tree, ENV_DIRECTORY) else {
        return read("environment", "/environment").into_iter().collect();
    };
    // What the shell's `*.sh` stands for: it leaves hidden files out.
    let scripts = names.iter().filter(|name| name.ends_with(".sh") && !name.starts_with('.'));
    scripts.take(MAX_ENV_SCRIPTS).filter_map(|name| read(name, &format!("{ENV_DIRECTORY}/{name}"))).collect()
}

/// The labels in a JSON object. Values that are no strings become their JSON text.
fn labels(json: &str) -> BTreeMap<String, String> {
    let object: BTreeMap<String, serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
    let as_text = |value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    object.into_iter().map(|(name, value)| (name, as_text(value))).collect()
}

fn apps(tree: &dyn Tree) -> Vec<String> {
    let is_app = |name: &String| kind_of(tree, &format!("{APPS_DIRECTORY}/{name}")) == Some(Kind::Directory);
    names(tree, APPS_DIRECTORY).unwrap_or_default().into_iter().take(MAX_APPS).filter(is_app).collect()
}
