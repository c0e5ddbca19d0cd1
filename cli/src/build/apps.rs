//! SCIF apps: `/scif/apps/NAME` with what the sections of each say.

use super::copy;
use super::definition::{Script, Transfer};
use super::root::Root;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// An app, as a job carries it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct App {
    name: String,
    install: String,
    files: Vec<(String, String)>,
    environment: String,
    test: String,
    help: String,
    run: String,
    start: String,
    labels: BTreeMap<String, String>,
}

impl From<&super::definition::App> for App {
    fn from(app: &super::definition::App) -> Self {
        let app = app.clone();
        let files = app.files.into_iter().map(|one| (one.source, one.destination)).collect();
        let (name, install, environment, test) = (app.name, app.install, app.environment, app.test);
        Self {
            name,
            install,
            files,
            environment,
            test,
            help: app.help,
            run: app.run,
            start: app.start,
            labels: app.labels,
        }
    }
}

/// Writes the apps and what tells of them.
pub(super) fn write(root: &Root, apps: &[App]) -> anyhow::Result<()> {
    let mut all = String::new();
    for app in apps {
        write_one(root, app)?;
        all.push_str(&exports(app));
    }
    root.put(".singularity.d/env/94-appsbase.sh", all.as_bytes(), 0o755)
}

fn write_one(root: &Root, app: &App) -> anyhow::Result<()> {
    let (base, data) = (format!("scif/apps/{}", app.name), format!("scif/data/{}", app.name));
    for directory in ["scif/env", "bin", "lib"] {
        root.make_directory(&Path::new(&base).join(directory), 0o755)?;
    }
    for directory in ["input", "output"] {
        root.make_directory(&Path::new(&data).join(directory), 0o755)?;
    }
    root.put(format!("{base}/scif/env/01-base.sh"), variables(&app.name).as_bytes(), 0o755)?;
    let texts = [
        ("env/90-environment.sh", &app.environment, 0o755, ""),
        ("runscript", &app.run, 0o755, "#!/bin/sh\n\n"),
        ("startscript", &app.start, 0o755, "#!/bin/sh\n\n"),
        ("test", &app.test, 0o755, "#!/bin/sh\n\n"),
        ("runscript.help", &app.help, 0o644, ""),
    ];
    for (name, text, mode, first) in texts.into_iter().filter(|(_, text, ..)| !text.is_empty()) {
        let end = if first.is_empty() { "" } else { "\n" };
        root.put(format!("{base}/scif/{name}"), format!("{first}{text}{end}").as_bytes(), mode)?;
    }
    for (source, destination) in &app.files {
        // Without a destination the file has the same name in the app.
        let inside = if destination.is_empty() { source } else { destination };
        let destination = format!("/{base}/{}", inside.trim_start_matches('/'));
        copy::from_host(root, &Transfer { source: source.clone(), destination })?;
    }
    let mut labels = app.labels.clone();
    labels.entry("SCIF_APP_NAME".to_owned()).or_insert_with(|| app.name.clone());
    let labels = crate::report::json_with_tabs(&labels)?;
    root.put(format!("{base}/scif/labels.json"), labels.as_bytes(), 0o644)
}

/// What an app's own scripts find set.
fn variables(name: &str) -> String {
    format!(
        "#!/bin/sh\n\nSCIF_APPNAME={name}\nSCIF_APPROOT=\"/scif/apps/{name}\"\nSCIF_APPMETA=\"/scif/apps/{name}/scif\"\n\
         SCIF_DATA=\"/scif/data\"\nSCIF_APPDATA=\"/scif/data/{name}\"\nSCIF_APPINPUT=\"/scif/data/{name}/input\"\n\
         SCIF_APPOUTPUT=\"/scif/data/{name}/output\"\n\
         export SCIF_APPDATA SCIF_APPNAME SCIF_APPROOT SCIF_APPMETA SCIF_APPINPUT SCIF_APPOUTPUT SCIF_DATA\n"
    )
}

/// Where each app is, for all programs of the image.
fn exports(app: &App) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
    let name: String = app.name.chars().map(plain).collect();
    let base = format!("/scif/apps/{name}");
    let mut text = format!("## App Global Exports For: {name}\n\n");
    let places = [
        ("APPDATA", format!("/scif/data/{name}")),
        ("APPMETA", format!("{base}/scif")),
        ("APPROOT", base.clone()),
        ("APPBIN", format!("{base}/bin")),
        ("APPLIB", format!("{base}/lib")),
    ];
    for (key, path) in &places {
        let _ = writeln!(text, "SCIF_{key}_{name}={path}");
    }
    let keys: Vec<_> = places.iter().map(|(key, _)| format!("SCIF_{key}_{name}")).collect();
    let _ = writeln!(text, "\nexport {}", keys.join(" "));
    if !app.environment.is_empty() {
        let _ = writeln!(text, "export SCIF_APPENV_{name}=\"{base}/scif/env/90-environment.sh\"");
    }
    let _ = writeln!(text, "export SCIF_APPLABELS_{name}=\"{base}/scif/labels.json\"");
    if !app.run.is_empty() {
        let _ = writeln!(text, "export SCIF_APPRUN_{name}=\"{base}/scif/runscript\"");
    }
    text
}

/// `%post` with what the apps install behind it, each in its own directory.
pub(super) fn with_installs(post: &Script, apps: &[super::definition::App]) -> Script {
    let mut post = post.clone();
    for app in apps {
        let base = format!("/scif/apps/{}", app.name);
        let _ = write!(post.text, "\ncd /\n. {base}/scif/env/01-base.sh\n\ncd {base}\n{}\n\ncd /\n", app.install);
    }
    post
}
