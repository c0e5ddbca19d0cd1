//! The files that every image has beside those of its layers, under the names that apptainer gives them.
//!
//! They are the same whether the layers are converted or read in place.

mod quoting;
mod runscript;

pub use runscript::is_generated;

use super::config::{ImageConfig, RunConfig};
use quoting::{go_quoted, in_double_quotes};
use runscript::runscript;
use serde::Serialize;
use std::collections::BTreeMap;
use time::{Duration, OffsetDateTime};

/// A file that an image is given beside those of its layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// Where. Missing directories on the way are made.
    pub path: String,
    /// What.
    pub body: OwnBody,
    /// Permissions.
    pub mode: u16,
    /// Whether it takes the place of what the layers have there, which otherwise stays.
    pub replaces: bool,
}

/// What a file of [`Own`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnBody {
    /// A directory. One that is there stays.
    Directory,
    /// A regular file.
    File(Vec<u8>),
    /// A symbolic link to this.
    Symlink(String),
}

/// Where an image comes from, as a definition file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// What it is fetched with: `docker`, `oci`, `oci-archive`, ...
    pub bootstrap: String,
    /// What it is named there, as the user wrote it behind the scheme.
    pub from: String,
}

impl Origin {
    /// The definition file that names it.
    pub fn deffile(&self) -> String {
        format!("bootstrap: {}\nfrom: {}\n\n", self.bootstrap, self.from.replace('\n', " "))
    }
}

impl Own {
    /// The content of a file; nothing for anything else.
    pub fn bytes(&self) -> &[u8] {
        match &self.body {
            OwnBody::File(bytes) => bytes,
            OwnBody::Directory | OwnBody::Symlink(_) => &[],
        }
    }
}

/// Places to mount on, and to hold our own files.
pub const DIRECTORIES: [&str; 12] = [
    "dev",
    "etc",
    "home",
    "proc",
    "root",
    "sys",
    "tmp",
    "var/tmp",
    ".singularity.d",
    ".singularity.d/actions",
    ".singularity.d/env",
    ".singularity.d/libs",
];
/// Files that the host's are mounted on.
pub const EMPTY_FILES: [&str; 2] = ["etc/hosts", "etc/resolv.conf"];
/// Names at the top and what they lead to.
pub const LINKS: [(&str, &str); 6] = [
    (".exec", ".singularity.d/actions/exec"),
    (".run", ".singularity.d/actions/run"),
    (".shell", ".singularity.d/actions/shell"),
    (".test", ".singularity.d/actions/test"),
    ("environment", ".singularity.d/env/90-environment.sh"),
    ("singularity", ".singularity.d/runscript"),
];
/// The environment of an image that sets none.
pub const NO_ENVIRONMENT: &str = "#!/bin/sh\n# Custom environment shell code should follow\n\n";
/// Scripts that are the same in all images. No runtime of today runs the actions; images of all others have them.
pub const SCRIPTS: [(&str, &str); 12] = [
    (".singularity.d/actions/exec", include_str!("own/scripts/exec.sh")),
    (".singularity.d/actions/run", include_str!("own/scripts/run.sh")),
    (".singularity.d/actions/shell", include_str!("own/scripts/shell.sh")),
    (".singularity.d/actions/start", include_str!("own/scripts/start.sh")),
    (".singularity.d/actions/test", include_str!("own/scripts/test.sh")),
    (".singularity.d/env/01-base.sh", "#!/bin/sh\n"),
    (".singularity.d/env/90-environment.sh", NO_ENVIRONMENT),
    (".singularity.d/env/94-appsbase.sh", ""),
    (".singularity.d/env/95-apps.sh", include_str!("own/scripts/95-apps.sh")),
    (".singularity.d/env/99-base.sh", include_str!("own/scripts/99-base.sh")),
    (".singularity.d/env/99-runtimevars.sh", include_str!("own/scripts/99-runtimevars.sh")),
    (".singularity.d/startscript", "#!/bin/sh\n"),
];

/// The files of an image that is to be run as its configuration says. `arch` is what it is for, `seconds` the time that its
/// labels say it is of, since 1970.
pub fn files(config: &ImageConfig, origin: &Origin, arch: &str, seconds: u32) -> Vec<Own> {
    own(&config.config, &labels(&config.config, origin, arch, seconds), &origin.deffile())
}

/// `Wednesday_25_November_2026_1:19:33_UTC`: a time as apptainer's labels have it.
pub fn date(seconds: u32) -> String {
    let time = OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds.into());
    let (weekday, day, month, year) = (time.weekday(), time.day(), time.month(), time.year());
    let (hour, minute, second) = time.to_hms();
    format!("{weekday}_{day}_{month}_{year}_{hour}:{minute}:{second}_UTC")
}

/// The labels of the image, with those of this build.
fn labels(config: &RunConfig, origin: &Origin, arch: &str, seconds: u32) -> BTreeMap<String, String> {
    let mut labels = config.labels.clone();
    let own = [
        ("schema-version", "1.0".to_owned()),
        ("build-arch", arch.to_owned()),
        ("build-date", date(seconds)),
        ("usage.siphon.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("usage.singularity.deffile.bootstrap", origin.bootstrap.clone()),
        ("usage.singularity.deffile.from", origin.from.clone()),
    ];
    labels.extend(own.map(|(name, value)| (format!("org.label-schema.{name}"), value)));
    labels
}

fn own(config: &RunConfig, labels: &BTreeMap<String, String>, deffile: &str) -> Vec<Own> {
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
    own.push(file("labels.json", html_escaped(&json_with_tabs(labels)), 0o644));
    own.push(file("Singularity", deffile.to_owned(), 0o644));
    own
}

fn json_with_tabs(labels: &BTreeMap<String, String>) -> String {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let written = labels.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter));
    written.expect("text as JSON always fits into memory");
    String::from_utf8_lossy(&text).into_owned()
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
        let own = own(&RunConfig::default(), &labels, "");

        let file = own.iter().find(|file| file.path == ".singularity.d/labels.json").unwrap();

        let text = "{\n\t\"a\": \"\\u003cb\\u003e \\u0026 \\\"c\\\" é\"\n}";
        assert_eq!(file.body, OwnBody::File(text.into()));
    }

    #[test]
    fn the_date_is_written_as_apptainer_does() {
        assert_eq!(date(1_795_569_573), "Wednesday_25_November_2026_1:19:33_UTC");
        assert_eq!(date(0), "Thursday_1_January_1970_0:0:0_UTC");
    }
}
