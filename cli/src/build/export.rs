//! An image file as an OCI image in a registry, one that docker and podman run.
//!
//! ```text
//! an image file that goes back to an OCI image in a registry   the layers of that, and one of what changed since
//! any other                                                     one layer of all
//! ```
//!
//! It is run as the OCI image was, by its entry point and command. Where a definition file has given the image a runscript of its
//! own, that is the entry point, with the environment set before. It lies under `/.singularity.d/oci`, since a pull of the image
//! writes the scripts anew that are there for singularity, and so do the environment's words, under a name of their own.

use crate::host::cache_dir;
use crate::report::{Report, human_bytes, utc};
use crate::settings::Common;
use anyhow::{Context, bail};
use serde_json::{Value, json};
use siphon_fsd::layered::{Came, Content, Layer, Target};
use siphon_fsd::locator::{self, Locator};
use siphon_image::oci::Descriptor;
use siphon_image::oci::base::Base;
use siphon_image::oci::config::RunConfig;
use siphon_image::oci::own::{NO_ENVIRONMENT, Own, OwnBody, is_generated};
use siphon_image::open::{Facts, Format, facts};
use siphon_image::reference::Repository;
use siphon_image::sif::{Arch, Sif};
use std::num::NonZeroUsize;

/// What runs an image that has a runscript of its own.
const ENTRY_POINT: &str = "/.singularity.d/oci/run";
const ENTRY_SCRIPT: &str = "#!/bin/sh\n# Runs the image where it is an image of layers.\n\
    for script in /.singularity.d/env/*.sh; do\n    [ -f \"$script\" ] && . \"$script\"\ndone\n\
    exec /.singularity.d/oci/runscript \"$@\"\n";
/// Where the environment of a definition file is kept from a pull.
const ENVIRONMENT: &str = ".singularity.d/env/91-environment.sh";
/// What the runscript of an image that has none prints.
const NO_RUNSCRIPT_SAYS: &str = "There is no runscript defined for this container";
/// Where programs are looked for in an image that does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Sends the image file `image` to `repository` as an OCI image.
///
/// # Errors
/// If it cannot be read, is a sandbox, or the registry does not take it.
pub fn push(image: &str, repository: &Repository, common: &Common, report: Report) -> anyhow::Result<()> {
    let context = || format!("could not open image {image}");
    let locator = Locator::parse(image).with_context(context)?;
    let opened = locator::open(&locator, &cache_dir(common), common.cache_bytes).with_context(context)?;
    if opened.upper_dir.is_some() || opened.image.format == Format::Directory {
        bail!("{image} is a directory; make an image of it first (siphon commit {image} IMAGE.sif) and push that");
    }
    let tree = opened.image.tree.as_ref();
    let facts = facts(tree).with_context(context)?;
    let header = opened.image.sif.as_ref().map(Sif::header);
    let seconds = header.map_or(0, |header| header.created_seconds);
    let arch = header.map(|header| header.arch).or_else(|| Arch::from_name(std::env::consts::ARCH));
    let config = opened.image.oci_config().and_then(|json| serde_json::from_slice(&json).ok());
    let run = Run::of(&facts, config);
    let target = Target::open(repository)?;
    let base = opened.image.oci_base().and_then(|base| provided(base, &target, report).transpose()).transpose()?;
    let changed = base.as_ref().map(|base| &base.changed);
    let content = Content { tree, changed, own: &run.own, own_seconds: seconds };
    let layer = send(&target, content, report)?;
    let image = Image { run: &run, facts: &facts, base: base.as_ref(), layer: &layer, arch, seconds };
    let below = base.iter().flat_map(|base| &base.layers);
    let layers: Vec<Descriptor> = below.chain([&layer.descriptor]).cloned().collect();
    let manifest = target.finish(repository.version(), image.config().to_string().as_bytes(), &layers)?;
    report.info("Upload complete");
    report.info(format_args!("docker://{repository} is {manifest}"));
    Ok(())
}

/// The base, if the repository has all of its layers now.
fn provided(base: Base, target: &Target, report: Report) -> anyhow::Result<Option<Base>> {
    let named = format!("{}@{}", base.repository, base.manifest);
    let Ok(from) = Repository::parse(&named) else { return Ok(None) };
    match target.provide(&from, &base.layers) {
        Ok(came) => {
            let count = |wanted| came.iter().filter(|came| **came == wanted).count();
            let (there, over, sent) = (count(Came::WasThere), count(Came::TakenOver), count(Came::Sent));
            report.info(format_args!("Layers of {named}: {there} there, {over} taken over, {sent} sent"));
            Ok(Some(base))
        }
        Err(error) if error.is_missing() => {
            report.warning(format_args!("{named} is not to be had any more, so that the whole image is sent: {error}"));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn send(target: &Target, content: Content<'_>, report: Report) -> anyhow::Result<Layer> {
    let bar = report.progress("sending", 0);
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let layer = target.send_layer(content, threads, &mut |made| bar.set(made, made))?;
    drop(bar);
    let bytes = human_bytes(layer.descriptor.size());
    match layer.came {
        Came::WasThere => report.info(format_args!("A layer of {bytes} was there already")),
        Came::TakenOver | Came::Sent => report.info(format_args!("Sent a layer of {bytes}")),
    }
    Ok(layer)
}

/// How an image is run.
#[derive(Debug)]
struct Run {
    /// As a configuration has it.
    config: serde_json::Map<String, Value>,
    /// What it takes beside the files of the image.
    own: Vec<Own>,
}

impl Run {
    fn of(facts: &Facts, config: Option<Value>) -> Self {
        let known: RunConfig =
            config.clone().and_then(|config| serde_json::from_value(config).ok()).unwrap_or_default();
        let mut config = config.and_then(|config| config.as_object().cloned()).unwrap_or_default();
        let mut own = Vec::new();
        // Who wrote none gets one that says so, from us and from apptainer.
        let is_own = |script: &&String| {
            !is_generated(script, &known.entrypoint, &known.cmd) && !script.contains(NO_RUNSCRIPT_SAYS)
        };
        let file = |path: &str, text: &str| Own {
            path: path.to_owned(),
            body: OwnBody::File(text.into()),
            mode: 0o755,
            replaces: true,
        };
        let is_said = |text: &&String| !text.is_empty() && text.trim() != NO_ENVIRONMENT.trim();
        if let Some(text) = facts.environment.as_ref().filter(is_said) {
            own.push(file(ENVIRONMENT, text));
        }
        if let Some(script) = facts.runscript.as_ref().filter(is_own) {
            let directory = OwnBody::Directory;
            own.push(Own { path: ".singularity.d/oci".to_owned(), body: directory, mode: 0o755, replaces: true });
            own.push(file(&ENTRY_POINT[1..], ENTRY_SCRIPT));
            own.push(file(".singularity.d/oci/runscript", script));
            config.insert("Entrypoint".to_owned(), json!([ENTRY_POINT]));
            config.remove("Cmd");
        } else if known.entrypoint.is_empty() && known.cmd.is_empty() {
            config.insert("Cmd".to_owned(), json!(["/bin/sh"]));
        }
        let mut env = known.env;
        if !env.iter().any(|variable| variable.starts_with("PATH=")) {
            env.insert(0, PATH.to_owned());
        }
        config.insert("Env".to_owned(), json!(env));
        config.insert("Labels".to_owned(), json!(facts.labels));
        Self { config, own }
    }
}

/// All that a configuration is made of.
struct Image<'a> {
    run: &'a Run,
    facts: &'a Facts,
    base: Option<&'a Base>,
    layer: &'a Layer,
    arch: Option<Arch>,
    seconds: i64,
}

impl Image<'_> {
    /// The configuration: what the base says that is not about running it, such as its variant, stays.
    fn config(&self) -> Value {
        let mut config = self.base.and_then(|base| base.config.as_object().cloned()).unwrap_or_default();
        let base_layers = self.base.map_or(0, |base| base.layers.len());
        let created = format!("{}Z", utc(self.seconds).replace(' ', "T"));
        let mut diff_ids: Vec<Value> =
            config.get("rootfs").and_then(|rootfs| rootfs["diff_ids"].as_array().cloned()).unwrap_or_default();
        diff_ids.push(json!(self.layer.diff_id));
        let mut history: Vec<Value> = config.get("history").and_then(Value::as_array).cloned().unwrap_or_default();
        let is_layer = |entry: &&Value| entry["empty_layer"].as_bool() != Some(true);
        if history.iter().filter(is_layer).count() != base_layers {
            history = vec![json!({ "created": created, "comment": "of the base" }); base_layers];
        }
        let recipe = self.facts.deffile.as_deref().unwrap_or_default();
        history.push(json!({ "created": created, "created_by": "siphon push", "comment": recipe }));
        if let Some(arch) = self.arch.filter(|_| config.get("architecture").is_none()) {
            config.insert("architecture".to_owned(), json!(arch.name()));
        }
        config.insert("os".to_owned(), json!("linux"));
        config.insert("created".to_owned(), json!(created));
        config.insert("config".to_owned(), json!(self.run.config));
        config.insert("rootfs".to_owned(), json!({ "type": "layers", "diff_ids": diff_ids }));
        config.insert("history".to_owned(), json!(history));
        // Those are of docker's own builds, of a container that is not this one.
        config.remove("container");
        config.remove("container_config");
        Value::Object(config)
    }
}
