//! `siphon inspect`: what an image says of itself.

use crate::args::InspectArgs;
use crate::inspection::{Parts, app_as_json, as_json, environment_scripts, script_path};
use crate::report::Report;
use crate::settings::Common;
use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::Value;
use siphon_image::oci::ImageConfig;
use siphon_image::open::{app_facts, facts};

/// Prints the chosen parts, the labels if none is chosen.
///
/// # Errors
/// If the image cannot be opened.
pub fn inspect(args: &InspectArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    let opened = super::open_image(&args.image, common)?;
    let tree = opened.tree()?;
    let facts = match &args.app {
        Some(app) => app_facts(tree.as_ref(), app),
        None => facts(tree.as_ref())?,
    };
    if args.oci_config {
        let Some(config) = opened.image.oci_config() else { bail!("{} holds no OCI configuration", args.image) };
        let config = ImageConfig::parse(&config).with_context(|| format!("cannot inspect {}", args.image))?;
        return Ok(report.line(serde_json::to_string_pretty(&config)?)?);
    }
    let parts = if args.all { Parts::all(&facts) } else { chosen(args) };
    if args.json || args.all {
        let json = match &args.app {
            Some(app) => app_as_json(app, &facts, parts),
            None => as_json(&facts, parts),
        };
        return Ok(report.line(tab_indented(&json)?)?);
    }
    for (_, text) in parts.texts(&facts) {
        report.line(text)?;
    }
    for script in environment_scripts(&facts).filter(|_| parts.environment) {
        report.line(format_args!(
            "=== {} ===\n{}\n",
            script_path(script, args.app.as_deref()),
            script.text.trim_end()
        ))?;
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
    use serde_json::json;

    #[test]
    fn json_is_indented_by_tabs() {
        assert_eq!(tab_indented(&json!({"a": {"b": 1}})).unwrap(), "{\n\t\"a\": {\n\t\t\"b\": 1\n\t}\n}");
    }
}
