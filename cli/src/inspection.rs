//! What an image says of itself, in the shape of `apptainer inspect --json`. A SIF carries the whole of it as
//! `inspect-metadata.json`, so that nothing has to be run to inspect it.

use serde_json::{Map, Value, json};
use siphon_image::open::{Facts, Script};

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
    /// All that `facts` have something of.
    pub fn all(facts: &Facts) -> Self {
        Self {
            apps: !facts.apps.is_empty(),
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

/// The wanted parts as JSON.
pub fn as_json(facts: &Facts, parts: Parts) -> Value {
    let texts = parts.texts(facts).map(|(name, text)| (name.to_owned(), json!(text)));
    let mut attributes: Map<_, _> = texts.collect();
    if parts.environment {
        let scripts = environment_scripts(facts).map(|script| (script_path(script), json!(script.text.trim_end())));
        attributes.insert("environment".into(), scripts.collect::<Map<_, _>>().into());
    }
    if parts.apps {
        let apps = facts.apps.iter().map(|app| (app.clone(), json!({})));
        attributes.insert("apps".into(), apps.collect::<Map<_, _>>().into());
    }
    if parts.labels {
        attributes.insert("labels".into(), json!(facts.labels));
    }
    json!({ "data": { "attributes": attributes }, "type": "container" })
}

/// What the image's maker wrote, as singularity shows it: not the scripts that its build adds to every image.
pub fn environment_scripts(facts: &Facts) -> impl Iterator<Item = &Script> {
    facts.env_scripts.iter().filter(|script| {
        let own = script.name.starts_with("10-docker") || script.name.ends_with("-environment.sh");
        own && script.name.ends_with(".sh")
    })
}

/// Where a script lies in the image.
pub fn script_path(script: &Script) -> String {
    format!("/.singularity.d/env/{}", script.name)
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
}
