//! Sections: `%name arguments` at the beginning of a line, and the lines below it.

use super::error::Problem;
use super::files::{self, Files};
use super::header::distance;
use super::text::{Line, Span};
use super::{App, Script, Stage};
use std::collections::BTreeMap;

/// Sections that there are.
const SECTIONS: [&str; 11] =
    ["help", "setup", "files", "labels", "environment", "pre", "post", "runscript", "test", "startscript", "arguments"];
/// Sections of an app, whose name follows.
const APP_SECTIONS: [&str; 8] =
    ["appinstall", "applabels", "appfiles", "appenv", "apptest", "apphelp", "apprun", "appstart"];
/// More apps than one image has.
const MAX_APPS: usize = 1024;

/// Reads the sections of a stage, the first line of which begins one.
pub(super) fn parse(lines: &[Line<'_>], stage: &mut Stage, problems: &mut Vec<Problem>) {
    let mut rest = lines;
    while let Some((line, below)) = rest.split_first() {
        let end = below.iter().position(Line::begins_section).unwrap_or(below.len());
        let (body, next) = below.split_at(end);
        if let Err(problem) = section(line, body, stage, problems) {
            problems.push(problem);
        }
        rest = next;
    }
}

fn section(line: &Line<'_>, body: &[Line<'_>], stage: &mut Stage, problems: &mut Vec<Problem>) -> Result<(), Problem> {
    let heading = line.text.trim_start();
    if heading.len() != line.text.len() {
        let message = "a section begins in the first column, and no other line may begin with \"%\": take the blanks \
                       away before it, or put something else at the beginning of the line";
        return Err(line.problem(heading.split_whitespace().next().unwrap_or_default(), message));
    }
    let heading = heading.trim_start_matches('%');
    let name = heading.split_whitespace().next().filter(|_| !heading.starts_with(char::is_whitespace));
    let name = name.unwrap_or_default();
    let known = name.to_ascii_lowercase();
    let arguments = without_comment(&heading[name.len()..]);
    if APP_SECTIONS.contains(&known.as_str()) {
        return app_section(line, &known, arguments, body, stage, problems);
    }
    let text = joined(body);
    match known.as_str() {
        "files" => files_section(line, arguments, body, stage, problems)?,
        "labels" => stage.labels.extend(labels(&text)),
        // Read before anything else was.
        "arguments" => {}
        name => match script_of(stage, name) {
            Some(script) => add(script, arguments, &text),
            None => return Err(unknown(line, name)),
        },
    }
    Ok(())
}

/// The script of this section; `None` if it has none.
fn script_of<'a>(stage: &'a mut Stage, name: &str) -> Option<&'a mut Script> {
    Some(match name {
        "help" => &mut stage.help,
        "setup" => &mut stage.setup,
        "environment" => &mut stage.environment,
        "pre" => &mut stage.pre,
        "post" => &mut stage.post,
        "runscript" => &mut stage.runscript,
        "test" => &mut stage.test,
        "startscript" => &mut stage.startscript,
        _ => return None,
    })
}

/// Of a section that is there twice the lines add up, and the last arguments count.
fn add(script: &mut Script, arguments: &str, text: &str) {
    if !arguments.is_empty() {
        arguments.clone_into(&mut script.arguments);
    }
    script.text.push_str(text);
}

fn unknown(line: &Line<'_>, name: &str) -> Problem {
    let all = || SECTIONS.iter().chain(&APP_SECTIONS);
    let near = all().map(|known| (distance(name, known), *known)).min().filter(|(distance, _)| *distance <= 2);
    let near = near.filter(|_| name.len() > 2).map(|(_, near)| format!("; did you mean %{near}?")).unwrap_or_default();
    let known = all().map(|known| format!("%{known}")).collect::<Vec<_>>().join(" ");
    let word = line.text.split_whitespace().next().unwrap_or_default();
    line.problem(word, &format!("invalid section(s) specified: {name}{near} The sections are {known}"))
}

fn files_section(
    line: &Line<'_>,
    arguments: &str,
    body: &[Line<'_>],
    stage: &mut Stage,
    problems: &mut Vec<Problem>,
) -> Result<(), Problem> {
    let words: Vec<_> = arguments.split_whitespace().collect();
    let from = match words[..] {
        [] => None,
        [from, name] if from.eq_ignore_ascii_case("from") => Some(name.to_owned()),
        _ => {
            let message = "expected nothing, or \"from STAGE\" for files of a stage above, after %files";
            return Err(line.problem(Span::last_of(line.text, arguments), message));
        }
    };
    let transfers = files::transfers(body, problems);
    match stage.files.iter_mut().find(|files| files.from == from) {
        Some(files) => files.transfers.extend(transfers),
        None => stage.files.push(Files { from, transfers, line: line.number }),
    }
    Ok(())
}

fn app_section(
    line: &Line<'_>,
    section: &str,
    arguments: &str,
    body: &[Line<'_>],
    stage: &mut Stage,
    problems: &mut Vec<Problem>,
) -> Result<(), Problem> {
    let Some(name) = arguments.split_whitespace().next() else {
        let message = format!("expected the name of an app after %{section}");
        return Err(line.problem(line.text.trim(), &message));
    };
    if name.contains('/') || name == "." || name == ".." {
        return Err(line.problem(Span::last_of(line.text, name), "the name of an app is the name of a directory"));
    }
    let index = match stage.apps.iter().position(|app| app.name == name) {
        Some(index) => index,
        None if stage.apps.len() == MAX_APPS => {
            return Err(line.problem(line.text.trim(), &format!("{MAX_APPS} apps are the most")));
        }
        None => {
            stage.apps.push(App { name: name.to_owned(), ..App::default() });
            stage.apps.len() - 1
        }
    };
    let app = &mut stage.apps[index];
    let text = joined(body);
    match section {
        "appinstall" => app.install.push_str(&text),
        "appfiles" => app.files.extend(files::transfers(body, problems)),
        "appenv" => app.environment.push_str(&text),
        "apptest" => app.test.push_str(&text),
        "apphelp" => app.help.push_str(&text),
        "apprun" => app.run.push_str(&text),
        "appstart" => app.start.push_str(&text),
        _ => app.labels.extend(labels(&text)),
    }
    Ok(())
}

fn without_comment(arguments: &str) -> &str {
    arguments.split('#').next().unwrap_or_default().trim()
}

fn joined(lines: &[Line<'_>]) -> String {
    let mut text = String::with_capacity(lines.iter().map(|line| line.text.len() + 1).sum());
    for line in lines {
        text.push_str(line.text);
        text.push('\n');
    }
    text
}

/// Lines of a key and a value, as `%labels` and what `%post` writes to `$APPTAINER_LABELS` have them.
pub fn labels(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let pair = |line: &str| match line.split_once(char::is_whitespace) {
        Some((key, value)) => (key.to_owned(), value.trim().to_owned()),
        None => (line.to_owned(), String::new()),
    };
    lines.map(pair).collect()
}
