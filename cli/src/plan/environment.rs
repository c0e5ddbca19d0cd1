//! The environment and the first program.
//!
//! An image with `/bin/sh` gets a script that sources the image's own environment files and then becomes the program.
//! An image without one runs `exec` directly, with the variables that its files plainly export.

use super::gpu::cdi::Compatibility;
use super::gpu::{self, LIBRARIES};
use super::{HostFacts, PlanError};
use crate::settings::{Action, RunSettings};
use siphon_image::open::Facts;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// What the container's shell is given.
const ACTION_SCRIPT: &str = include_str!("environment/action.sh");
/// The PATH inside, as singularity has it; the host's is kept as USER_PATH.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What passes through `--cleanenv`, besides proxies.
const CLEAN: [&str; 1] = ["TERM"];
/// Proxy variables pass through `--cleanenv`, in both cases.
const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "no_proxy", "all_proxy", "ftp_proxy"];
/// Names that set or edit a path of the container, where the user sets them.
const PATH_EDITS: [&str; 5] =
    ["PATH", "PREPEND_PATH", "APPEND_PATH", "PREPEND_LD_LIBRARY_PATH", "APPEND_LD_LIBRARY_PATH"];
/// Variables of the host that never pass: the container's own are used.
const NEVER: [&str; 5] = ["PATH", "LD_LIBRARY_PATH", "HOME", "PWD", "PS1"];
/// Variables that are orders to the runtime and not for the container.
const RUNTIME_PREFIXES: [&str; 6] =
    ["SIPHON_", "APPTAINER_", "SINGULARITY_", "SIPHONENV_", "APPTAINERENV_", "SINGULARITYENV_"];

type Variables = BTreeMap<OsString, OsString>;

/// What is executed.
pub(super) struct Program {
    /// Program and arguments.
    pub(super) argv: Vec<OsString>,
    /// The whole environment.
    pub(super) environment: Vec<(OsString, OsString)>,
}

/// The program with its arguments, and its environment.
pub(super) fn program(
    settings: &RunSettings,
    image: &Facts,
    host: &HostFacts,
    home: &Path,
) -> Result<Program, PlanError> {
    let mut variables = fixed(settings, home);
    let passed = from_host(settings, host);
    if let Some(path) = host.environment.get("PATH").filter(|_| !settings.clean_env) {
        variables.insert("USER_PATH".into(), path.to_owned());
    }
    let argv = if image.has_shell {
        script_variables(&mut variables, settings, &passed);
        if let Some(Compatibility { directory, driver }) = &host.gpu.injection.compatibility {
            variables.insert("SIPHON_CUDA_COMPAT".into(), directory.into());
            variables.insert("SIPHON_CUDA_DRIVER".into(), driver.to_string().into());
        }
        script_argv(settings)
    } else {
        let Action::Exec(command) = &settings.action else { return Err(PlanError::NoShell(settings.action.name())) };
        plain_variables(&mut variables, settings, image, passed);
        command.clone()
    };
    Ok(Program { argv, environment: variables.into_iter().collect() })
}

/// What is the same whatever the image says.
fn fixed(settings: &RunSettings, home: &Path) -> Variables {
    let name = Path::new(&settings.image).file_name().unwrap_or(OsStr::new("")).to_owned();
    let binds: Vec<_> = settings.binds.iter().map(|bind| bind.destination.display().to_string()).collect();
    let mut variables = Variables::new();
    variables.insert("PATH".into(), DEFAULT_PATH.into());
    variables.insert("HOME".into(), home.into());
    if settings.clean_env {
        variables.insert("LANG".into(), "C".into());
    }
    for prefix in ["APPTAINER_", "SINGULARITY_"] {
        let mut set = |key: &str, value: OsString| variables.insert(format!("{prefix}{key}").into(), value);
        set("CONTAINER", settings.image.clone().into());
        set("NAME", name.clone());
        set("BIND", binds.join(",").into());
        set("ENVIRONMENT", "/.singularity.d/env/91-environment.sh".into());
    }
    variables.insert("APPTAINER_COMMAND".into(), settings.action.name().into());
    variables.insert("APPTAINER_APPNAME".into(), OsString::new());
    variables
}

/// The host's variables that a run without objections of the image would see.
fn from_host(settings: &RunSettings, host: &HostFacts) -> Variables {
    let passes = |name: &OsStr| {
        let Some(text) = name.to_str() else { return !settings.clean_env };
        let clean = CLEAN.contains(&text) || PROXIES.contains(&text.to_ascii_lowercase().as_str());
        let runtimes = RUNTIME_PREFIXES.iter().any(|prefix| text.starts_with(prefix));
        !runtimes && !NEVER.contains(&text) && (clean || !settings.clean_env)
    };
    let passed = host.environment.variables().filter(|(name, _)| passes(name));
    passed.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn script_argv(settings: &RunSettings) -> Vec<OsString> {
    let arguments = match &settings.action {
        Action::Exec(command) => command,
        Action::Shell { arguments, .. } | Action::Run(arguments) => arguments,
    };
    let mut argv: Vec<OsString> = ["/bin/sh", "-c", ACTION_SCRIPT, "siphon"].map(OsString::from).to_vec();
    argv.extend(arguments.iter().cloned());
    argv
}

/// Hands the script its material. Names that are no shell identifiers cannot go through it and are passed as they are.
fn script_variables(variables: &mut Variables, settings: &RunSettings, passed: &Variables) {
    let mut host_names = Vec::new();
    for (name, value) in passed {
        match identifier(name) {
            Some(text) => {
                variables.insert(format!("SIPHON_HOST_{text}").into(), value.clone());
                host_names.push(text);
            }
            None => {
                variables.insert(name.clone(), value.clone());
            }
        }
    }
    variables.insert("SIPHON_HOST_NAMES".into(), host_names.join(" ").into());
    let mut set_names = Vec::new();
    for (name, value) in &settings.injected {
        let Some(text) = identifier(name) else { continue };
        if PATH_EDITS.contains(&text) {
            variables.insert(format!("SIPHON_{text}").into(), value.clone());
            continue;
        }
        let mut value = if settings.evaluate { escape_quotes(value) } else { value.clone() };
        if text == "LD_LIBRARY_PATH" && !value.is_empty() {
            value.push(format!(":{LIBRARIES}"));
        }
        variables.insert(format!("SIPHON_SET_{text}").into(), value);
        set_names.push(text);
    }
    variables.insert("SIPHON_SET_NAMES".into(), set_names.join(" ").into());
    let mut order = |name: &str, value: &OsStr| variables.insert(format!("SIPHON_{name}").into(), value.to_owned());
    order("ACTION", OsStr::new(settings.action.name()));
    order("EVALUATE", OsStr::new(if settings.evaluate { "1" } else { "" }));
    order("QUIET", OsStr::new(if settings.quiet { "1" } else { "" }));
    order("LIBRARIES", OsStr::new(&gpu::library_path(&settings.gpu)));
    if let Action::Shell { program: Some(program), .. } = &settings.action {
        order("SHELL", program);
    }
}

/// What an image without a shell gets: the host's variables, the image's plain exports over them, the user's over all.
fn plain_variables(variables: &mut Variables, settings: &RunSettings, image: &Facts, passed: Variables) {
    variables.extend(passed);
    for script in &image.env_scripts {
        variables.extend(script.text.lines().filter_map(plain_export));
    }
    variables.extend(settings.injected.iter().map(|(name, value)| (name.clone(), value.clone())));
    let libraries = gpu::library_path(&settings.gpu);
    if !libraries.is_empty() {
        let name = OsString::from("LD_LIBRARY_PATH");
        let value = match variables.get(&name).filter(|value| !value.is_empty()) {
            Some(present) => [present, OsStr::new(":"), OsStr::new(&libraries)].into_iter().collect(),
            None => OsString::from(libraries),
        };
        variables.insert(name, value);
    }
}

/// Reads `export K=v`, `export K="v"`, `export K='v'` and `export K="${K:-"v"}"`, as build tools write them. A value
/// with anything left for a shell to expand is not taken.
fn plain_export(line: &str) -> Option<(OsString, OsString)> {
    let (name, value) = line.trim().strip_prefix("export ")?.split_once('=')?;
    identifier(OsStr::new(name))?;
    let default = value.strip_prefix(&format!("\"${{{name}:-")).and_then(|rest| rest.strip_suffix("}\""));
    let value = default.unwrap_or(value);
    if let Some(literal) = value.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        return Some((name.into(), literal.into()));
    }
    let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    let mut literal = String::new();
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => literal.push(characters.next()?),
            '$' | '`' | '"' => return None,
            other => literal.push(other),
        }
    }
    Some((name.into(), literal.into()))
}

/// The name as text if a shell can hold such a variable.
fn identifier(name: &OsStr) -> Option<&str> {
    let text = name.to_str()?;
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    (first && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')).then_some(text)
}

fn escape_quotes(value: &OsStr) -> OsString {
    let mut escaped = Vec::with_capacity(value.len());
    for byte in value.as_bytes() {
        if *byte == b'"' {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    OsString::from_vec(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_exports_are_read_without_a_shell() {
        let cases = [
            ("export A=1", Some(("A", "1"))),
            ("export A=\"x y\"", Some(("A", "x y"))),
            ("export A='$x'", Some(("A", "$x"))),
            ("export A=\"${A:-\"img\"}\"", Some(("A", "img"))),
            ("export A=\"a\\$b\"", Some(("A", "a$b"))),
            ("export A=$B", None),
            ("export A=`id`", None),
            ("A=1", None),
            ("# export A=1", None),
        ];
        for (line, expected) in cases {
            let expected = expected.map(|(name, value)| (OsString::from(name), OsString::from(value)));
            assert_eq!(plain_export(line), expected, "{line}");
        }
    }

    #[test]
    fn names_that_no_shell_can_hold_are_told_apart() {
        assert_eq!(identifier(OsStr::new("_A1")), Some("_A1"));
        assert_eq!(identifier(OsStr::new("1A")), None);
        assert_eq!(identifier(OsStr::new("BASH_FUNC_module%%")), None);
        assert_eq!(identifier(OsStr::new("")), None);
    }
}
