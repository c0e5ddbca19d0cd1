//! Definition files: text in, [`Recipe`] out. Pure: no file, no environment, no system call.
//!
//! ```text
//! text        -> stages     before every line that begins with "bootstrap:", in any case   (stages)
//! stage       -> expanded   {{ NAME }} by the build arguments and %arguments               (arguments)
//! expanded    -> header     "Key: value" up to the first line whose first word begins with "%"  (header)
//!             -> sections   "%name arguments", then everything up to the next one          (section)
//! ```
//!
//! The grammar is apptainer's. Where apptainer takes something silently that cannot be meant, or dies of it, this is an
//! error that shows the line: `docs/COMPATIBILITY.md` lists those places.

mod arguments;
mod error;
mod files;
mod header;
mod json;
mod section;
mod text;

pub use arguments::BuildArguments;
pub use error::{Error, Problem};
pub use files::{Files, Transfer};
pub use json::from_json;
pub use section::labels;
pub use text::{Line, Span};

use std::collections::BTreeMap;
use std::ops::Range;

/// More than any recipe is long.
pub const MAX_RECIPE_BYTES: u64 = 16 << 20;
/// More stages than anyone needs: each is an image of its own.
const MAX_STAGES: usize = 256;

/// A definition file: one stage after the other, the last of which is the image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recipe {
    /// In the order of the file; at least one.
    pub stages: Vec<Stage>,
    /// The whole text with its arguments in place, which the image keeps.
    pub text: String,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// What makes one root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stage {
    /// Keys in lower case.
    pub header: BTreeMap<String, String>,
    /// `%files`, one for each of its arguments, in order.
    pub files: Vec<Files>,
    /// `%labels`.
    pub labels: BTreeMap<String, String>,
    /// `%pre`: runs on the host before anything else.
    pub pre: Script,
    /// `%setup`: runs on the host.
    pub setup: Script,
    /// `%post`: runs in the container.
    pub post: Script,
    /// `%help`.
    pub help: Script,
    /// `%environment`.
    pub environment: Script,
    /// `%runscript`.
    pub runscript: Script,
    /// `%startscript`.
    pub startscript: Script,
    /// `%test`.
    pub test: Script,
    /// SCIF apps, in order of their first section.
    pub apps: Vec<App>,
}

/// A section that holds a script or a text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Script {
    /// What follows the name, up to a comment.
    pub arguments: String,
    /// Its lines, with the end of each.
    pub text: String,
}

/// Sections of one app.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct App {
    /// Its name.
    pub name: String,
    /// `%appinstall`.
    pub install: String,
    /// `%appfiles`.
    pub files: Vec<Transfer>,
    /// `%appenv`.
    pub environment: String,
    /// `%apptest`.
    pub test: String,
    /// `%apphelp`.
    pub help: String,
    /// `%apprun`.
    pub run: String,
    /// `%appstart`.
    pub start: String,
    /// `%applabels`.
    pub labels: BTreeMap<String, String>,
}

impl Script {
    /// Whether the section is not there, or has nothing in it.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// The words after the section's name.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.arguments.split_whitespace()
    }
}

impl Stage {
    /// What `Bootstrap:` names, in lower case.
    pub fn agent(&self) -> String {
        self.header.get("bootstrap").map(|agent| agent.to_ascii_lowercase()).unwrap_or_default()
    }

    /// What `Stage:` names.
    pub fn name(&self) -> Option<&str> {
        self.header.get("stage").map(String::as_str)
    }
}

/// Reads a definition file.
///
/// # Errors
/// [`Error`] with every problem that was found, each with its place.
pub fn parse(text: &str, given: &BuildArguments) -> Result<Recipe, Error> {
    let mut recipe = Recipe::default();
    let mut problems = Vec::new();
    let mut used = std::collections::BTreeSet::new();
    let parts = stages(text);
    if parts.len() > MAX_STAGES {
        return Err(Error::whole(format!("the recipe has {} stages, and {MAX_STAGES} are the most", parts.len())));
    }
    for (first_line, range) in parts {
        let part = &text[range];
        match arguments::expand(part, first_line, given, &mut recipe.warnings) {
            Ok(expanded) => {
                used.extend(expanded.used);
                match stage(&expanded.text, first_line, &recipe.stages) {
                    Ok(Some(stage)) => {
                        recipe.text.push_str(&expanded.text);
                        recipe.stages.push(stage);
                    }
                    Ok(None) => {}
                    Err(found) => problems.extend(found),
                }
            }
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() && recipe.stages.is_empty() {
        return Err(Error::whole(
            "the recipe is empty: it begins with a line such as \"Bootstrap: docker\", and its sections follow".into(),
        ));
    }
    if !problems.is_empty() {
        return Err(Error::new(problems));
    }
    given.check_used(&used, &mut recipe.warnings)?;
    Ok(recipe)
}

/// Where the stages are: the number of the first line, and the bytes.
fn stages(text: &str) -> Vec<(usize, Range<usize>)> {
    let mut starts = vec![(1, 0)];
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let begins = line.get(..BOOTSTRAP.len()).is_some_and(|word| word.eq_ignore_ascii_case(BOOTSTRAP));
        if begins && offset > 0 {
            starts.push((index + 1, offset));
        }
        offset += line.len();
    }
    let ends: Vec<_> = starts.iter().skip(1).map(|(_, start)| *start).chain([text.len()]).collect();
    let parts = starts.into_iter().zip(ends).map(|((line, start), end)| (line, start..end));
    parts.filter(|(_, range)| !range.is_empty()).collect()
}

const BOOTSTRAP: &str = "bootstrap:";

/// Reads one stage. Nothing for a part that holds only comments and blanks, such as before the first stage.
fn stage(text: &str, first_line: usize, earlier: &[Stage]) -> Result<Option<Stage>, Vec<Problem>> {
    let lines = text::lines(text, first_line);
    let begin = lines.iter().position(Line::begins_section).unwrap_or(lines.len());
    let mut problems = Vec::new();
    let mut stage = Stage { header: header::parse(&lines[..begin], &mut problems), ..Stage::default() };
    if begin == lines.len() && stage.header.is_empty() && problems.is_empty() {
        return Ok(None);
    }
    section::parse(&lines[begin..], &mut stage, &mut problems);
    if problems.is_empty() && !stage.header.contains_key("bootstrap") {
        let line = lines.iter().find(|line| !line.is_blank()).unwrap_or(&lines[0]);
        problems.push(line.problem(
            line.words().next().unwrap_or_default(),
            "sections need a header above them, whose first line says what the image is built from, such as \
             \"Bootstrap: docker\"",
        ));
    }
    check_stages(&stage, &lines, earlier, &mut problems);
    if problems.is_empty() { Ok(Some(stage)) } else { Err(problems) }
}

/// Every `%files from` names a stage above this one, and no two have the same name.
fn check_stages(stage: &Stage, lines: &[Line<'_>], earlier: &[Stage], problems: &mut Vec<Problem>) {
    let names: Vec<_> = earlier.iter().filter_map(Stage::name).collect();
    for files in &stage.files {
        let Some(from) = files.from.as_deref() else { continue };
        if !names.contains(&from) {
            let line = lines.iter().find(|line| line.number == files.line).unwrap_or(&lines[0]);
            let known = if names.is_empty() {
                "no stage above this one has a name (Stage: NAME)".to_owned()
            } else {
                format!("the stages above are {}", names.join(", "))
            };
            problems.push(line.problem(Span::last_of(line.text, from), &format!("no stage {from}: {known}")));
        }
    }
    if let Some(name) = stage.name().filter(|name| names.contains(name)) {
        let is_it = |line: &&Line<'_>| line.text.trim_start().to_ascii_lowercase().starts_with("stage");
        let line = lines.iter().find(is_it).unwrap_or(&lines[0]);
        problems.push(line.problem(Span::last_of(line.text, name), "another stage has this name already"));
    }
}

#[cfg(test)]
mod tests;
