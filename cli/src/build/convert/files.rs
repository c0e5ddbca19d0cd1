//! The files that every image has beside those of its layers, under the names that apptainer gives them.

use super::quoting::{go_quoted, in_double_quotes};
use super::runscript::runscript;
use crate::build::base_files::{DIRECTORIES, EMPTY_FILES, LINKS, SCRIPTS};
use crate::report::json_with_tabs;
use siphon_image::oci::config::RunConfig;
use siphon_image::oci::layers::{Own, OwnBody};
use std::collections::BTreeMap;

/// The files of an image that is to be run as `config` says.
pub(super) fn own(config: &RunConfig, labels: &BTreeMap<String, String>, deffile: &str) -> anyhow::Result<Vec<Own>> {
    let directory =
        |path: &&str| Own { path: (*path).to_owned(), body: OwnBody::Directory, mode: 0o755, replaces: false };
    let mut own: Vec<Own> = DIRECTORIES.iter().map(directory).collect();
    own.extend(EMPTY_FILES.map(|path| Own {
        path: path.to_owned(),
        body: OwnBody::File(Vec::new()),
        mode: 0o644,
        replaces: false,
    }));
    own.extend(LINKS.map(|(path, target)| Own {
        path: path.to_owned(),
        body: OwnBody::Symlink(target.to_owned()),
        mode: 0o777,
        replaces: false,
    }));
    let own_file =
        |path: String, text: String, mode| Own { path, body: OwnBody::File(text.into_bytes()), mode, replaces: true };
    let file = |name: &str, text: String, mode| own_file(format!(".singularity.d/{name}"), text, mode);
    own.extend(SCRIPTS.map(|(path, text)| own_file(path.to_owned(), text.to_owned(), 0o755)));
    own.push(file("env/10-docker2singularity.sh", environment(&config.env), 0o755));
    own.push(file("runscript", runscript(&config.entrypoint, &config.cmd), 0o755));
    own.push(file("labels.json", html_escaped(&json_with_tabs(labels)?), 0o644));
    own.push(file("Singularity", deffile.to_owned(), 0o644));
    Ok(own)
}

/// The script that sets the image's environment. What the caller has set wins, but for the path.
fn environment(variables: &[String]) -> String {
    let mut script = String::from("#!/bin/sh\n");
    for variable in variables {
        let line = match variable.split_once('=') {
            None => format!("export {variable}=\"${{{variable}:-}}\"\n"),
            Some(("PATH", value)) => format!("export PATH={}\n", go_quoted(&in_double_quotes(value))),
            Some((name, value)) => {
                format!("export {name}=\"${{{name}:-{}}}\"\n", go_quoted(&in_double_quotes(value)))
            }
        };
        script.push_str(&line);
    }
    script
}

/// JSON as Go writes it: safe to be put into a page.
fn html_escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_quoted_as_apptainer_quotes_it() {
        let variables = ["PATH=/bin:/x y", "A=b=c", "Q=a\"b$c`d`\\e", "SQ=it's", "EMPTY=", "NOEQ", "NL=a\nb"];

        let script = environment(&variables.map(str::to_owned));

        let expected = [
            "#!/bin/sh",
            r#"export PATH="/bin:/x y""#,
            r#"export A="${A:-"b=c"}""#,
            r#"export Q="${Q:-"a\\\"b\\$c\\`d\\`\\\\e"}""#,
            r#"export SQ="${SQ:-"it's"}""#,
            r#"export EMPTY="${EMPTY:-""}""#,
            r#"export NOEQ="${NOEQ:-}""#,
            r#"export NL="${NL:-"a\nb"}""#,
        ];
        assert_eq!(script.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn labels_may_hold_anything() {
        let labels = BTreeMap::from([("a".to_owned(), "<b> & \"c\" é".to_owned())]);
        let own = own(&RunConfig::default(), &labels, "").unwrap();

        let file = own.iter().find(|file| file.path == ".singularity.d/labels.json").unwrap();

        let text = "{\n\t\"a\": \"\\u003cb\\u003e \\u0026 \\\"c\\\" é\"\n}";
        assert_eq!(file.body, OwnBody::File(text.into()));
    }
}
