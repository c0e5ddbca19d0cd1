//! `siphon inspect`: what an image says of itself.

use crate::args::InspectArgs;
use crate::report::Report;
use crate::settings::Common;
use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::{Map, Value, json};
use siphon_image::oci::ImageConfig;
use siphon_image::open::{Facts, Script, facts};

/// Prints the chosen parts, the labels if none is chosen.
///
/// # Errors
/// If the image cannot be opened.
pub fn inspect(args: &InspectArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    let opened = super::open_image(&args.image, common)?;
    let facts = facts(opened.tree()?.as_ref())?;
    if args.oci_config {
        let Some(config) = opened.image.oci_config() else { bail!("{} holds no OCI configuration", args.image) };
        let config = ImageConfig::parse(&config).with_context(|| format!("cannot inspect {}", args.image))?;
        return Ok(report.line(serde_json::to_string_pretty(&config)?)?);
    }
    if args.json || args.all {
        return Ok(report.line(tab_indented(&as_json(args, &facts))?)?);
    }
    for (chosen, text) in texts(args, &facts) {
        if let (true, Some(text)) = (chosen, text) {
            report.line(text.trim_end())?;
        }
    }
    if args.environment {
        for script in environment_scripts(&facts) {
            report.line(format_args!("=== /.singularity.d/env/{} ===\n{}\n", script.name, script.text.trim_end()))?;
        }
    }
    if args.list_apps {
        for app in &facts.apps {
            report.line(app)?;
        }
    }
    if labels_chosen(args) {
        for (name, value) in &facts.labels {
            report.line(format_args!("{name}: {value}"))?;
        }
    }
    Ok(())
}

fn labels_chosen(args: &InspectArgs) -> bool {
    let others = [args.deffile, args.runscript, args.startscript, args.test, args.environment, args.helpfile];
    args.all || args.labels || !(args.list_apps || others.contains(&true))
}

fn texts<'a>(args: &InspectArgs, facts: &'a Facts) -> [(bool, Option<&'a str>); 5] {
    [
        (args.deffile, facts.deffile.as_deref()),
        (args.runscript, facts.runscript.as_deref()),
        (args.startscript, facts.startscript.as_deref()),
        (args.test, facts.test.as_deref()),
        (args.helpfile, facts.helpfile.as_deref()),
    ]
}

/// What the image's maker wrote, as singularity shows it: not the scripts that its build adds to every image.
fn environment_scripts(facts: &Facts) -> impl Iterator<Item = &Script> {
    facts.env_scripts.iter().filter(|script| {
        let own = script.name.starts_with("10-docker") || script.name.ends_with("-environment.sh");
        own && script.name.ends_with(".sh")
    })
}

/// JSON with the tabs of singularity's, which some scripts take apart by lines.
fn tab_indented(value: &Value) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, format))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The shape of `apptainer inspect --json`.
fn as_json(args: &InspectArgs, facts: &Facts) -> Value {
    let mut attributes = Map::new();
    let mut put = |chosen: bool, name: &str, text: &Option<String>| {
        if let (true, Some(text)) = (chosen || args.all, text) {
            attributes.insert(name.into(), json!(text.trim_end()));
        }
    };
    put(args.deffile, "deffile", &facts.deffile);
    put(args.helpfile, "helpfile", &facts.helpfile);
    put(args.runscript, "runscript", &facts.runscript);
    put(args.startscript, "startscript", &facts.startscript);
    put(args.test, "test", &facts.test);
    if args.environment || args.all {
        let scripts = environment_scripts(facts)
            .map(|script| (format!("/.singularity.d/env/{}", script.name), json!(script.text.trim_end())));
        let scripts: Map<_, _> = scripts.collect();
        attributes.insert("environment".into(), Value::Object(scripts));
    }
    if args.list_apps || (args.all && !facts.apps.is_empty()) {
        attributes
            .insert("apps".into(), facts.apps.iter().map(|app| (app.clone(), json!({}))).collect::<Map<_, _>>().into());
    }
    if labels_chosen(args) {
        attributes.insert("labels".into(), json!(facts.labels));
    }
    json!({ "data": { "attributes": attributes }, "type": "container" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(name: &str) -> Script {
        Script { name: name.into(), text: "x\n".into() }
    }

    #[test]
    fn only_the_environment_of_the_images_maker_is_shown() {
        let names = ["01-base.sh", "10-docker2singularity.sh", "90-environment.sh", "91-environment.sh", "99-base.sh"];
        let facts = Facts { env_scripts: names.map(script).into(), ..Facts::default() };

        let shown: Vec<_> = environment_scripts(&facts).map(|script| script.name.as_str()).collect();

        assert_eq!(shown, ["10-docker2singularity.sh", "90-environment.sh", "91-environment.sh"]);
    }

    #[test]
    fn json_is_indented_by_tabs() {
        assert_eq!(tab_indented(&json!({"a": {"b": 1}})).unwrap(), "{\n\t\"a\": {\n\t\t\"b\": 1\n\t}\n}");
    }
}
