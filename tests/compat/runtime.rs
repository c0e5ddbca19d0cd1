//! Runs the lines of cases under either runtime, and takes out of what they print what differs from machine to machine.

use super::case::{Case, Messages, Outcome};
use super::images::Images;
use crate::support::environment::TestEnvironment;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Runs a line (`$0`) in a directory (`$1`), with a home (`$2`), images (`$3`) and further variables in the same
/// environment under both runtimes. The image's files and those of the host that cases look at are made with this umask.
const RUN: &str = r#"umask 022; cd "$1" || exit 125; home=$2 images=$3; shift 3
exec env -i PATH="$PATH" HOME="$home" USER=user TERM=dumb IMAGES="$images" IMAGE="$images/main.sif" "$@" sh -c "$0""#;
/// Words of the environment that carry the state of siphon's own tests into a line.
const SIPHON_VARIABLES: [&str; 4] =
    ["SIPHON_CACHEDIR", "SIPHON_CONFIGDIR", "SIPHON_RUNTIME_DIR", "SIPHON_IDLE_SECONDS"];

/// What apptainer says of the machine that it runs on, and of how busy that is, whatever it is asked for.
const OF_THE_MACHINE: [&str; 5] = [
    "INFO:    fuse2fs not found",
    "INFO:    gocryptfs not found",
    "INFO:    Instance stats will not be available",
    "INFO:    Terminating squashfuse_ll after timeout",
    "INFO:    Timeouts can be caused by a running background process",
];

/// Something that calls itself `apptainer`.
pub(crate) trait Runtime {
    /// Runs the line of a case in an empty directory.
    fn run(&mut self, case: &Case) -> Ran;
}

/// What came of a line.
#[derive(Debug, Clone)]
pub(crate) struct Ran {
    /// As far as it counts.
    pub(crate) outcome: Outcome,
    /// All of stderr.
    pub(crate) stderr: String,
}

/// siphon, as a user of this machine.
pub(crate) struct Siphon {
    environment: TestEnvironment,
    images: Arc<Images>,
    runs: usize,
}

impl Siphon {
    pub(crate) fn new() -> Self {
        Self { environment: TestEnvironment::new(), images: Images::get(), runs: 0 }
    }
}

impl Runtime for Siphon {
    fn run(&mut self, case: &Case) -> Ran {
        self.runs += 1;
        let work = self.environment.make_directory(&self.runs.to_string());
        let home = &self.environment.user().dir;
        let variables = SIPHON_VARIABLES.map(|name| format!("{name}=\"${name}\"")).join(" ");
        let words =
            [&case.line, &text(&work), &text(home), &text(self.images.path())].map(|word| quoted(word)).join(" ");
        let finished = self.environment.shell(&format!("exec sh -c {} {words} {variables}", quoted(RUN))).run();
        let places = Places { work: &work, images: self.images.path(), home };
        places.take_out(case, finished.code, &finished.stdout, &finished.stderr)
    }
}

/// apptainer, perhaps in another root or on another machine.
pub(crate) struct Apptainer {
    enter: Vec<String>,
    archive: Vec<u8>,
    home: PathBuf,
    /// What it says of itself.
    pub(crate) version: String,
    runs: usize,
}

impl Apptainer {
    /// apptainer as `command` runs it: words of which the last is `apptainer`, and the others run any command where that
    /// is, as an unprivileged user, with its input and output.
    pub(crate) fn new(command: &str) -> Self {
        let mut enter: Vec<_> = command.split_whitespace().map(str::to_owned).collect();
        assert_eq!(enter.pop().as_deref(), Some("apptainer"), "the last word of {command:?} must be apptainer");
        let mut found =
            Self { enter, archive: Images::get().archive(), home: PathBuf::new(), version: String::new(), runs: 0 };
        let (code, output, error) =
            found.command(&["sh", "-c", "id -u; getent passwd $(id -u) | cut -d: -f6; apptainer --version"], &[]);
        let lines: Vec<_> = output.lines().collect();
        let &[user, home, version] = &lines[..] else {
            panic!("no apptainer behind {command:?}: {code} {output}{error}")
        };
        assert_ne!(user, "0", "{command:?} must run apptainer as an unprivileged user");
        (found.home, found.version) = (home.into(), version.trim_start_matches("apptainer version ").to_owned());
        found
    }

    fn command(&self, words: &[&str], input: &[u8]) -> (i32, String, String) {
        let words: Vec<_> = self.enter.iter().map(String::as_str).chain(words.iter().copied()).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap());
        (
            code,
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }
}

impl Runtime for Apptainer {
    fn run(&mut self, case: &Case) -> Ran {
        self.runs += 1;
        let base = PathBuf::from(format!("/tmp/siphon-compat-{}-{}", std::process::id(), self.runs));
        let (work, images) = (base.join("work"), base.join("images"));
        let line = format!(
            "mkdir {base} {base}/work {base}/images && tar -x -C {base}/images && cd {base} || exit 125
            sh -c \"$0\" \"$@\" </dev/null; code=$?; chmod -R u+rwX {base}; rm -rf {base}; exit $code",
            base = base.display()
        );
        let words = ["sh", "-c", &line, RUN, &case.line, &text(&work), &text(&self.home), &text(&images)];
        let (code, stdout, mut stderr) = self.command(&words, &self.archive);
        let lines = stderr.split_inclusive('\n');
        stderr = lines.filter(|line| !OF_THE_MACHINE.iter().any(|start| line.starts_with(start))).collect();
        Places { work: &work, images: &images, home: &self.home }.take_out(case, code, &stdout, &stderr)
    }
}

/// Directories whose names differ from run to run.
struct Places<'a> {
    work: &'a Path,
    images: &'a Path,
    home: &'a Path,
}

impl Places<'_> {
    /// Gives the directories their usual names, and leaves of stderr what counts.
    fn take_out(&self, case: &Case, code: i32, stdout: &str, stderr: &str) -> Ran {
        let named = |output: &str| {
            let places = [(self.work, "/WORK"), (self.images, "/IMAGES"), (self.home, "/HOME")];
            places.into_iter().fold(output.to_owned(), |output, (path, name)| output.replace(&text(path), name))
        };
        let stderr = named(stderr);
        let counted = match case.stderr {
            Messages::Levels => stderr.lines().filter_map(level).map(|level| format!("{level}\n")).collect(),
            Messages::Text => stderr.clone(),
            Messages::Ignored => String::new(),
        };
        Ran { outcome: Outcome { code, stdout: named(stdout), stderr: counted }, stderr }
    }
}

/// The level of a message, if it is a warning or worse.
fn level(line: &str) -> Option<&'static str> {
    ["FATAL", "ERROR", "WARNING"]
        .into_iter()
        .find(|level| line.strip_prefix(level).is_some_and(|rest| rest.starts_with(": ")))
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// The text as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[test]
fn only_messages_from_warnings_upwards_have_a_level_that_counts() {
    let lines = ["FATAL:   x", "WARNING: x", "INFO:    x", "WARNING", "say FATAL: x", "DEBUG   x"];

    assert_eq!(lines.map(level), [Some("FATAL"), Some("WARNING"), None, None, None, None]);
}
