//! The environment and the first program.
//!
//! An image with `/bin/sh` gets a script that sources the image's own environment files and then becomes the program.
//! An image without one runs `exec` directly, with the variables that its files plainly export.

mod file;

use super::gpu::LIBRARIES;
use super::gpu::cdi::Compatibility;
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
/// Variables of the host that never pass: the container's own are used.
const NEVER: [&str; 5] = ["PATH", "LD_LIBRARY_PATH", "HOME", "PWD", "PS1"];
/// Variables to set inside that change another one, once the image has had its say.
const EDITS: [&str; 5] = ["PATH", "PREPEND_PATH", "APPEND_PATH", "PREPEND_LD_LIBRARY_PATH", "APPEND_LD_LIBRARY_PATH"];
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

/// The program with its arguments, and its environment. In `library_path` are libraries of the host.
pub(super) fn program(
    settings: &RunSettings,
    image: &Facts,
    host: &HostFacts,
    home: &Path,
    library_path: &str,
    warnings: &mut Vec<String>,
) -> Result<Program, PlanError> {
    let mut variables = fixed(settings, home);
    let passed = from_host(settings, host);
    if let Some(path) = host.environment.get("PATH").filter(|_| !settings.clean_env) {
        variables.insert("USER_PATH".into(), path.to_owned());
    }
    let argv = if image.has_shell {
        script_variables(&mut variables, settings, &passed, library_path);
        file_variables(&mut variables, settings, host, warnings);
        if let Some(Compatibility { directory, driver }) = &host.gpu.injection.compatibility {
            variables.insert("SIPHON_CUDA_COMPAT".into(), directory.into());
            variables.insert("SIPHON_CUDA_DRIVER".into(), driver.to_string().into());
        }
        script_argv(settings)
    } else {
        let Action::Exec(command) = &settings.action else { return Err(PlanError::NoShell(settings.action.name())) };
        plain_variables(&mut variables, settings, image, host, passed);
        append_libraries(&mut variables, library_path);
        command.clone()
    };
    Ok(Program { argv, environment: variables.into_iter().collect() })
}

/// What is the same whatever the image says.
fn fixed(settings: &RunSettings, home: &Path) -> Variables {
    let name = Path::new(&settings.image).file_name().unwrap_or(OsStr::new("")).to_owned();
    let binds: Vec<_> = settings
        .binds
        .iter()
        .filter(|bind| !bind.not_nested)
        .map(|bind| bind.destination.display().to_string())
        .collect();
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
        if let Some(name) = &settings.instance {
            set("INSTANCE", name.into());
        }
    }
    if !settings.variables.evaluate {
        // Runscripts that were made from OCI images ask for it.
        variables.insert("APPTAINER_NO_EVAL".into(), "1".into());
        variables.insert("SINGULARITY_NO_EVAL".into(), "1".into());
    }
    variables.insert("APPTAINER_COMMAND".into(), settings.action.name().into());
    variables.insert("APPTAINER_APPNAME".into(), settings.app.clone().unwrap_or_default().into());
    if let Some(app) = &settings.app {
        // What the image's own script for apps goes by.
        variables.insert("SINGULARITY_APPNAME".into(), app.into());
    }
    variables
}

/// The host's variables that a run without objections of the image would see.
fn from_host(settings: &RunSettings, host: &HostFacts) -> Variables {
    let passes = |name: &OsStr| {
        let Some(text) = name.to_str() else { return !settings.clean_env };
        let clean = CLEAN.contains(&text) || PROXIES.contains(&text.to_ascii_lowercase().as_str());
        let runtimes = RUNTIME_PREFIXES.iter().any(|prefix| text.starts_with(prefix));
        let blocked = settings.variables.blocked.contains(text);
        !runtimes && !blocked && !NEVER.contains(&text) && (clean || !settings.clean_env)
    };
    let passed = host.environment.variables().filter(|(name, _)| passes(name));
    passed.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn script_argv(settings: &RunSettings) -> Vec<OsString> {
    let arguments = match &settings.action {
        Action::Exec(command) => command,
        Action::Shell { arguments, .. }
        | Action::Run(arguments)
        | Action::Test(arguments)
        | Action::Start(arguments) => arguments,
    };
    let mut argv: Vec<OsString> = ["/bin/sh", "-c", ACTION_SCRIPT, "siphon"].map(OsString::from).to_vec();
    argv.extend(arguments.iter().cloned());
    argv
}

/// Hands the script its material. Names that are no shell identifiers cannot go through it and are passed as they are.
fn script_variables(variables: &mut Variables, settings: &RunSettings, passed: &Variables, library_path: &str) {
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
    for (name, value) in &settings.variables.injected {
        let Some(text) = identifier(name) else { continue };
        if EDITS.contains(&text) {
            variables.insert(format!("SIPHON_{text}").into(), value.clone());
            continue;
        }
        let mut value = if settings.variables.evaluate { escape_quotes(value) } else { value.clone() };
        if text == "LD_LIBRARY_PATH" && !value.is_empty() {
            value.push(format!(":{LIBRARIES}"));
        }
        variables.insert(format!("SIPHON_SET_{text}").into(), value);
        set_names.push(text);
    }
    variables.insert("SIPHON_SET_NAMES".into(), set_names.join(" ").into());
    let mut order = |name: &str, value: &OsStr| variables.insert(format!("SIPHON_{name}").into(), value.to_owned());
    order("APP", OsStr::new(settings.app.as_deref().unwrap_or_default()));
    order("ACTION", OsStr::new(settings.action.name()));
    order("EVALUATE", OsStr::new(if settings.variables.evaluate { "1" } else { "" }));
    order("QUIET", OsStr::new(if settings.quiet { "1" } else { "" }));
    order("LIBRARIES", OsStr::new(library_path));
    if let Action::Shell { program: Some(program), .. } = &settings.action {
        order("SHELL", program);
    }
}

/// Hands the script the files of variables, and what to take over from them.
fn file_variables(variables: &mut Variables, settings: &RunSettings, host: &HostFacts, warnings: &mut Vec<String>) {
    let text: String = host.env_files.iter().map(|text| format!("{text}\n")).collect();
    let (ignored, names): (Vec<_>, Vec<_>) =
        file::assigned_names(&text).into_iter().partition(|name| settings.variables.by_flag.contains(OsStr::new(name)));
    let warning = |name: &str| format!("Ignored environment file variable {name}: override from --env");
    warnings.extend(ignored.into_iter().map(warning));
    variables.insert("SIPHON_FILE_NAMES".into(), names.join(" ").into());
    variables.insert("SIPHON_FILE".into(), text.into());
}

/// What an image without a shell gets: the host's variables, the image's plain exports over them, the user's over all.
fn plain_variables(
    variables: &mut Variables,
    settings: &RunSettings,
    image: &Facts,
    host: &HostFacts,
    passed: Variables,
) {
    variables.extend(passed);
    for script in &image.env_scripts {
        variables.extend(script.text.lines().filter_map(plain_export));
    }
    let assignments = host.env_files.iter().flat_map(|text| text.lines()).map(str::trim_start);
    let plain = assignments.map(|line| format!("export {}", line.strip_prefix("export ").unwrap_or(line)));
    variables.extend(plain.filter_map(|line| plain_export(&line)));
    variables.extend(settings.variables.injected.iter().map(|(name, value)| (name.clone(), value.clone())));
}

fn append_libraries(variables: &mut Variables, library_path: &str) {
    if library_path.is_empty() {
        return;
    }
    let name = OsString::from("LD_LIBRARY_PATH");
    let value = match variables.get(&name).filter(|value| !value.is_empty()) {
        Some(present) => [present, OsStr::new(":"), OsStr::new(library_path)].into_iter().collect(),
        None => OsString::from(library_path),
    };
    variables.insert(name, value);
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
