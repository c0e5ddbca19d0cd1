//! What an image says of itself, in the shape of `apptainer inspect --json`. A SIF carries the whole of it as
//! `inspect-metadata.json`, so that nothing has to be run to inspect it.

use serde_json::{Map, Value, json};
use siphon_image::open::{Facts, Script, app_facts};
use siphon_image::tree::Tree;

/// Where the environment of an image lies in it.
pub const ENV_DIRECTORY: &str = "/.singularity.d/env";
/// Apps of which everything is shown: each may have five files of a MiB.
const MAX_APPS: usize = 64;

/// The parts that are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts {
    /// Names of the SCIF apps.
    pub apps: bool,
    /// The definition file.
    pub deffile: bool,
    /// The scripts that set the environment.
    pub environment: bool,
    /// The help text.
    pub helpfile: bool,
    /// The labels.
    pub labels: bool,
    /// The runscript.
    pub runscript: bool,
    /// The startscript.
    pub startscript: bool,
    /// The test script.
    pub test: bool,
}

impl Parts {
    /// Every part.
    pub fn all() -> Self {
        Self {
            apps: true,
            deffile: true,
            environment: true,
            helpfile: true,
            labels: true,
            runscript: true,
            startscript: true,
            test: true,
        }
    }

    /// The wanted ones of those that are plain text and exist, under their names, in the order of singularity.
    pub fn texts(self, facts: &Facts) -> impl Iterator<Item = (&'static str, &str)> {
        let texts = [
            (self.deffile, "deffile", &facts.deffile),
            (self.runscript, "runscript", &facts.runscript),
            (self.startscript, "startscript", &facts.startscript),
            (self.test, "test", &facts.test),
            (self.helpfile, "helpfile", &facts.helpfile),
        ];
        let wanted = texts.into_iter().filter(|(wanted, ..)| *wanted);
        wanted.filter_map(|(_, name, text)| {
            let text = text.as_deref()?;
            // Singularity takes the definition file from the SIF as it is, and the others through a shell, which trims them.
            Some((name, if name == "deffile" { text } else { text.trim_end() }))
        })
    }
}

/// The wanted parts as JSON, with what is to be shown of apps, by name. What is empty is left out, as singularity does.
pub fn as_json(facts: &Facts, parts: Parts, apps: Map<String, Value>) -> Value {
    let mut attributes = attributes(facts, parts, ENV_DIRECTORY);
    if !apps.is_empty() {
        attributes.insert("apps".into(), apps.into());
    }
    json!({ "data": { "attributes": attributes }, "type": "container" })
}

/// The wanted parts of an app, by its name; nothing if it has none of them.
pub fn app_as_json(tree: &dyn Tree, name: &str, parts: Parts) -> Map<String, Value> {
    let attributes = attributes(&app_facts(tree, name), parts, &app_env_directory(name));
    let shown = (!attributes.is_empty()).then(|| (name.to_owned(), attributes.into()));
    shown.into_iter().collect()
}

/// All that is shown of an image where everything is.
pub fn everything(tree: &dyn Tree, facts: &Facts) -> Value {
    let parts = Parts::all();
    let apps = facts.apps.iter().take(MAX_APPS).flat_map(|name| app_as_json(tree, name, parts));
    as_json(facts, parts, apps.collect())
}

fn attributes(facts: &Facts, parts: Parts, env_directory: &str) -> Map<String, Value> {
    let mut attributes: Map<_, _> = parts.texts(facts).map(|(name, text)| (name.to_owned(), json!(text))).collect();
    if parts.environment {
        let scripts = environment_scripts(facts)
            .map(|script| (format!("{env_directory}/{}", script.name), json!(script.text.trim_end())));
        attributes.insert("environment".into(), scripts.collect::<Map<_, _>>().into());
    }
    if parts.labels {
        attributes.insert("labels".into(), json!(facts.labels));
    }
    attributes.retain(|_, value| value.as_object().is_none_or(|object| !object.is_empty()));
    attributes
}

/// Where the environment of an app lies in the image.
pub fn app_env_directory(name: &str) -> String {
    format!("/scif/apps/{name}/scif/env")
}

/// What the image's maker wrote, as singularity shows it: not the scripts that its build adds to every image.
pub fn environment_scripts(facts: &Facts) -> impl Iterator<Item = &Script> {
    facts.env_scripts.iter().filter(|script| {
        let own = script.name.starts_with("10-docker") || script.name.ends_with("-environment.sh");
        own && script.name.ends_with(".sh")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(name: &str) -> Script {
        Script { name: name.into(), text: "x\n".into() }
    }

    #[test]
    fn what_is_empty_is_left_out_of_the_json() {
        let facts = Facts { runscript: Some("exec true\n".into()), ..Facts::default() };

        let shown = as_json(&facts, Parts::all(), Map::new());

        assert_eq!(shown, json!({ "data": { "attributes": { "runscript": "exec true" } }, "type": "container" }));
    }

    #[test]
    fn only_the_environment_of_the_images_maker_is_shown() {
        let names = ["01-base.sh", "10-docker2singularity.sh", "90-environment.sh", "91-environment.sh", "99-base.sh"];
        let facts = Facts { env_scripts: names.map(script).into(), ..Facts::default() };

        let shown: Vec<_> = environment_scripts(&facts).map(|script| script.name.as_str()).collect();

        assert_eq!(shown, ["10-docker2singularity.sh", "90-environment.sh", "91-environment.sh"]);
    }
}
