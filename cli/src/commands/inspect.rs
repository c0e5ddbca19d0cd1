//! `siphon inspect`: what an image says of itself.

use crate::args::InspectArgs;
use crate::inspection::{
    ENV_DIRECTORY, Parts, app_as_json, app_env_directory, as_json, environment_scripts, everything,
};
use crate::report::Report;
use crate::settings::Common;
use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::{Value, json};
use siphon_image::oci::config::ImageConfig;
use siphon_image::open::{Facts, app_facts, facts};

/// Prints the chosen parts, the labels if none is chosen.
///
/// # Errors
/// If the image cannot be opened.
pub fn inspect(args: &InspectArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    let opened = super::open_image(&args.image, common, report)?;
    let tree = opened.tree()?;
    let facts = facts(tree.as_ref())?;
    if args.oci_config {
        let Some(config) = opened.image.oci_config() else { bail!("{} holds no OCI configuration", args.image) };
        let config = ImageConfig::parse(&config).with_context(|| format!("cannot inspect {}", args.image))?;
        return Ok(report.line(serde_json::to_string_pretty(&config)?)?);
    }
    if args.all {
        return Ok(report.line(tab_indented(&everything(tree.as_ref(), &facts))?)?);
    }
    let parts = chosen(args);
    match &args.app {
        Some(name) if args.json => {
            let apps = app_as_json(tree.as_ref(), name, parts);
            Ok(report.line(tab_indented(&as_json(&Facts::default(), parts, apps))?)?)
        }
        Some(name) => Ok(print(&app_facts(tree.as_ref(), name), parts, &app_env_directory(name), report)?),
        None if args.json => {
            let apps = facts.apps.iter().filter(|_| parts.apps).map(|name| (name.clone(), json!({}))).collect();
            Ok(report.line(tab_indented(&as_json(&facts, parts, apps))?)?)
        }
        None => Ok(print(&facts, parts, ENV_DIRECTORY, report)?),
    }
}

/// Prints the wanted parts as text.
fn print(facts: &Facts, parts: Parts, env_directory: &str, report: Report) -> std::io::Result<()> {
    for (_, text) in parts.texts(facts) {
        report.line(text)?;
    }
    for script in environment_scripts(facts).filter(|_| parts.environment) {
        report.line(format_args!("=== {env_directory}/{} ===\n{}\n", script.name, script.text.trim_end()))?;
    }
    for app in facts.apps.iter().filter(|_| parts.apps) {
        report.line(app)?;
    }
    for (name, value) in facts.labels.iter().filter(|_| parts.labels) {
        report.line(format_args!("{name}: {value}"))?;
    }
    Ok(())
}

/// The parts that the flags name, or else the labels.
fn chosen(args: &InspectArgs) -> Parts {
    let parts = Parts {
        apps: args.list_apps,
        deffile: args.deffile,
        environment: args.environment,
        helpfile: args.helpfile,
        labels: args.labels,
        runscript: args.runscript,
        startscript: args.startscript,
        test: args.test,
    };
    Parts { labels: parts.labels || parts == Parts::default(), ..parts }
}

/// JSON with the tabs of singularity's, which some scripts take apart by lines.
fn tab_indented(value: &Value) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, format))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_indented_by_tabs() {
        assert_eq!(tab_indented(&json!({"a": {"b": 1}})).unwrap(), "{\n\t\"a\": {\n\t\t\"b\": 1\n\t}\n}");
    }
}
