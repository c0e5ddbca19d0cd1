//! Definitions in the JSON of apptainer (`build --json`).

use super::{App, Error, Files, Recipe, Script, Stage, Transfer, header, section};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Definition {
    header: Option<BTreeMap<String, String>>,
    image_data: ImageData,
    build_data: BuildData,
    custom_data: Option<BTreeMap<String, String>>,
    app_order: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ImageData {
    labels: Option<BTreeMap<String, String>>,
    image_scripts: ImageScripts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ImageScripts {
    help: Part,
    environment: Part,
    run_script: Part,
    test: Part,
    start_script: Part,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BuildData {
    files: Option<Vec<FilesPart>>,
    build_scripts: BuildScripts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BuildScripts {
    pre: Part,
    setup: Part,
    post: Part,
    test: Part,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Part {
    args: String,
    script: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FilesPart {
    args: String,
    files: Option<Vec<FilePart>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FilePart {
    source: String,
    destination: String,
}

/// Reads a definition in JSON.
///
/// # Errors
/// [`Error`] with the place where it is no JSON, or with what is missing.
pub fn from_json(text: &str) -> Result<Recipe, Error> {
    let definition: Definition = serde_json::from_str(text).map_err(|error| {
        let line = text.lines().nth(error.line().saturating_sub(1)).unwrap_or_default();
        let span = super::Span { start: error.column().saturating_sub(1), length: 1 };
        Error::new(vec![super::Problem::new(
            error.line().max(1),
            line,
            span,
            format!("no definition in JSON: {error}"),
        )])
    })?;
    let stage = stage(definition)?;
    Ok(Recipe { text: as_text(&stage), stages: vec![stage], warnings: Vec::new() })
}

fn stage(definition: Definition) -> Result<Stage, Error> {
    let header: BTreeMap<_, _> = definition
        .header
        .unwrap_or_default()
        .into_iter()
        .map(|(key, value)| (key.to_ascii_lowercase(), value))
        .collect();
    if let Some(key) = header.keys().find(|key| !header::is_key(key)) {
        return Err(Error::whole(format!("invalid header keyword found: {key}")));
    }
    if !header.contains_key("bootstrap") {
        return Err(Error::whole("the definition has no header.bootstrap".to_owned()));
    }
    let script = |part: Part| Script {
        arguments: part.args.split('#').next().unwrap_or_default().trim().to_owned(),
        text: part.script,
    };
    let ImageScripts { help, environment, run_script, test, start_script } = definition.image_data.image_scripts;
    let BuildScripts { pre, setup, post, test: build_test } = definition.build_data.build_scripts;
    let files = definition.build_data.files.unwrap_or_default().into_iter().map(files).collect::<Result<_, _>>()?;
    Ok(Stage {
        header,
        files,
        labels: definition.image_data.labels.unwrap_or_default(),
        pre: script(pre),
        setup: script(setup),
        post: script(post),
        help: script(help),
        environment: script(environment),
        runscript: script(run_script),
        startscript: script(start_script),
        test: script(if test.script.is_empty() { build_test } else { test }),
        apps: apps(definition.custom_data.unwrap_or_default(), definition.app_order.unwrap_or_default())?,
    })
}

fn files(part: FilesPart) -> Result<Files, Error> {
    let arguments = part.args.split('#').next().unwrap_or_default();
    let words: Vec<_> = arguments.split_whitespace().collect();
    let from = match words[..] {
        [] => None,
        _ => {
            return Err(Error::whole(format!(
                "files of another stage ({arguments}): a definition in JSON has one stage"
            )));
        }
    };
    let transfers = part.files.unwrap_or_default().into_iter();
    let transfer = |file: FilePart| Transfer { source: file.source, destination: file.destination };
    Ok(Files {
        from,
        transfers: transfers.map(transfer).filter(|transfer| !transfer.source.is_empty()).collect(),
        line: 1,
    })
}

/// The sections of apps, which are the text of a recipe each under its heading.
fn apps(sections: BTreeMap<String, String>, order: Vec<String>) -> Result<Vec<App>, Error> {
    let mut text = String::new();
    let position = |heading: &str| {
        let name = heading.split_whitespace().nth(1).unwrap_or_default();
        order.iter().position(|known| known == name).unwrap_or(order.len())
    };
    let mut sections: Vec<_> = sections.into_iter().collect();
    sections.sort_by_key(|(heading, _)| position(heading));
    for (heading, body) in sections {
        let _ = writeln!(text, "%{heading}\n{body}");
    }
    let (mut stage, mut problems) = (Stage::default(), Vec::new());
    section::parse(&super::text::lines(&text, 1), &mut stage, &mut problems);
    if problems.is_empty() { Ok(stage.apps) } else { Err(Error::new(problems)) }
}

/// The same as a recipe, for the image to keep.
fn as_text(stage: &Stage) -> String {
    let mut text = format!("bootstrap: {}\n", stage.header["bootstrap"]);
    for (key, value) in stage.header.iter().filter(|(key, _)| *key != "bootstrap") {
        let _ = writeln!(text, "{key}: {value}");
    }
    text.push('\n');
    let section = |text: &mut String, name: &str, arguments: &str, body: &str| {
        if !body.is_empty() {
            let blank = if arguments.is_empty() { "" } else { " " };
            let _ = writeln!(text, "%{name}{blank}{arguments}\n{}\n", body.trim_end_matches('\n'));
        }
    };
    let labels: String = stage.labels.iter().map(|(key, value)| format!("\t{key} {value}\n")).collect();
    section(&mut text, "labels", "", &labels);
    for files in &stage.files {
        let lines = files.transfers.iter().map(|one| format!("\t{}\t{}\n", one.source, one.destination));
        section(&mut text, "files", "", &lines.collect::<String>());
    }
    let scripts = [
        ("help", &stage.help),
        ("environment", &stage.environment),
        ("runscript", &stage.runscript),
        ("test", &stage.test),
        ("startscript", &stage.startscript),
        ("pre", &stage.pre),
        ("setup", &stage.setup),
        ("post", &stage.post),
    ];
    for (name, script) in scripts {
        section(&mut text, name, &script.arguments, &script.text);
    }
    for app in &stage.apps {
        let parts =
            [("appinstall", &app.install), ("appenv", &app.environment), ("apprun", &app.run), ("apptest", &app.test)];
        for (name, body) in parts.into_iter().chain([("apphelp", &app.help), ("appstart", &app.start)]) {
            section(&mut text, name, &app.name, body);
        }
    }
    text
}
