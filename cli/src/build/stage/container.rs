//! The runs of a stage: `%post` and `%test`, in containers as a user could start them.

use super::Builder;
use crate::build::child;
use crate::build::definition::Script;
use crate::build::job::{Action, UMASK};
use crate::build::keep::{Key, Note};
use crate::settings::NOTE_MOUNT_POINTS;
use anyhow::{Context, bail};
use nix::sys::stat::{Mode, umask};
use siphon_fsd::daemon::Ids;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often a long section tells how far it is.
const NEWS: Duration = Duration::from_secs(30);
/// Where `%post` lies while it runs.
const POST: &str = ".post.script";
/// What `%post` may know, under both prefixes.
const VARIABLES: [(&str, &str); 2] =
    [("ENVIRONMENT", "/.singularity.d/env/91-environment.sh"), ("LABELS", "/.build.labels")];

impl Builder<'_> {
    pub(super) fn post(&self, post: &Script, key: Option<&str>, layer: &Path, is_target: bool) -> anyhow::Result<Note> {
        let path = format!("/{POST}");
        let argv = argv("post", &path, post)?;
        let put = Action::Put { path: path.clone(), text: post.text.clone(), mode: 0o755 };
        let mut command = self.container("exec", layer)?;
        command.args(["--writable", "--cleanenv"]);
        for (name, value) in VARIABLES {
            command.arg("--env").arg(format!("APPTAINER_{name}={value},SINGULARITY_{name}={value}"));
        }
        command.arg(layer).args(&argv);
        let points = self.mount_points(&mut command)?;
        let missing = self.inside(layer, vec![Action::Missing(points), put])?.missing;
        self.report().info("Running post scriptlet");
        let start = Instant::now();
        let status = self.run_in_container(&mut command, "%post", layer);
        let took = start.elapsed();
        if let Err(error) = &status {
            tracing::debug!("{error:#}");
        }
        let status = status?;
        self.inside(layer, vec![Action::Take { path }])?;
        if !status.success() {
            self.release(layer);
            self.tell("%post", layer, took);
            self.keep_failed(key, layer, is_target)?;
            bail!("while running engine: while running %post section: {}", child::said(status));
        }
        self.tell("%post", layer, took);
        if let Some(key) = key {
            self.keep.forget_failed(self.workspace, key)?;
        }
        Ok(Note { missing, seconds: took.as_secs_f64(), ..Note::default() })
    }

    /// Where a run is going to mount something. What of it the image lacks is made in the layer, and is not the image's.
    fn mount_points(&self, command: &mut Command) -> anyhow::Result<Vec<PathBuf>> {
        let note = self.workspace.path.join("mount-points");
        command.env(NOTE_MOUNT_POINTS, &note).stderr(Stdio::null());
        let status = self.workspace.interrupt.run(command, |_| {});
        command.env_remove(NOTE_MOUNT_POINTS).stderr(Stdio::inherit());
        if !status?.success() {
            // What is wrong is said by the run itself, which comes now.
            return Ok(Vec::new());
        }
        let noted = std::fs::read(&note).context("a run of the build did not say what it mounts")?;
        Ok(serde_json::from_slice(&noted)?)
    }

    fn keep_failed(&self, key: Option<&str>, layer: &Path, is_target: bool) -> anyhow::Result<()> {
        if self.settings.no_cache || is_target {
            return Ok(());
        }
        // Without a digest of what came before it can only be looked at.
        let unknown = Key::new().and(layer.as_os_str().as_encoded_bytes()).text();
        let place = self.keep.store_failed(self.workspace, key.unwrap_or(&unknown), layer)?;
        let fakeroot = if matches!(self.ids, Ids::Host) { "" } else { " --fakeroot" };
        self.report().info(format_args!(
            "What %post has done is kept. Look at it with:\n           siphon shell{fakeroot} --writable {}",
            place.display()
        ));
        if key.is_some() {
            self.report().info(format_args!("Run %post again on top of it with:\n           {}", self.again));
        }
        Ok(())
    }

    /// A run of this stage's container, up to its options.
    pub(in crate::build) fn container(&self, verb: &str, layer: &Path) -> anyhow::Result<Command> {
        let mut command = self.workspace.siphon();
        // Recipes set the image's own time zone by a link, which a mount would keep them from.
        let left_out = if verb == "exec" { "home,cwd,tmp,/etc/localtime" } else { "home,cwd,tmp" };
        command.arg(verb).args(["--pwd", "/", "--no-mount", left_out]);
        if !matches!(self.ids, Ids::Host) {
            command.arg("--fakeroot");
        }
        if matches!(&self.ids, Ids::Root(others) if others.is_empty()) {
            command.arg("--ignore-subuid");
        }
        if can_have_processes() {
            command.arg("--pid");
        }
        // The host's own would be emptied by what many recipes end with, `rm -rf /tmp/*`.
        let scratch = tempfile::Builder::new().prefix("tmp-").tempdir_in(&self.workspace.path)?.keep();
        for (name, inside) in [("tmp", "/tmp"), ("var-tmp", "/var/tmp")] {
            let directory = scratch.join(name);
            std::fs::create_dir(&directory)?;
            std::fs::set_permissions(&directory, Permissions::from_mode(0o1777))?;
            command.arg("--bind").arg(format!("{}:{inside}", directory.display()));
        }
        for (name, warning) in [("resolv.conf", "Name resolution could fail"), ("hosts", "Host resolution could fail")]
        {
            let staged = self.workspace.path.join(name);
            // Package managers leave a file alone that is not as their package has it, and this one cannot be replaced.
            match std::fs::read(Path::new("/etc").join(name)) {
                Ok(content) => {
                    std::fs::write(&staged, [&content[..], b"\n"].concat())?;
                    command.arg("--bind").arg(format!("{}:/etc/{name}", staged.display()));
                }
                Err(error) => self.report().warning(format_args!("{warning}: /etc/{name}: {error}")),
            }
        }
        command.args(&self.settings.run_options).current_dir("/");
        tracing::debug!("{verb} in {}", layer.display());
        Ok(command)
    }

    /// Runs it, and tells now and then how far it is.
    pub(in crate::build) fn run_in_container(
        &self,
        command: &mut Command,
        what: &str,
        layer: &Path,
    ) -> anyhow::Result<ExitStatus> {
        let tells = self.report().is_watched();
        let mut next = NEWS;
        let before = umask(Mode::from_bits_truncate(UMASK));
        let status = self.workspace.interrupt.run(command, |elapsed| {
            if tells && elapsed >= next {
                next = elapsed + NEWS;
                self.tell_so_far(what, layer, elapsed);
            }
        });
        umask(before);
        status
    }
}

/// The words that run a section: `-c SHELL...` has that shell run it.
pub(super) fn argv(name: &str, path: &str, script: &Script) -> anyhow::Result<Vec<String>> {
    let mut argv = vec!["/bin/sh".to_owned(), "-ex".to_owned()];
    let words: Vec<_> = script.words().collect();
    match words.iter().position(|word| *word == "-c") {
        Some(at) if at + 1 == words.len() => {
            bail!(
                "bad {name} section '-c' parameter: missing arguments; it takes a shell, such as \"%{name} -c /bin/bash\""
            )
        }
        Some(at) => {
            argv.extend(words[..=at].iter().map(|&word| word.to_owned()));
            argv.push(format!("{} {path}", words[at + 1..].join(" ")));
        }
        None => {
            argv.extend(words.iter().map(|&word| word.to_owned()));
            argv.push(path.to_owned());
        }
    }
    Ok(argv)
}

/// Whether a `/proc` of a container's own can be mounted: not where the host's is covered in parts, as in containers of
/// Docker (`mount_too_revealing` of the kernel).
fn can_have_processes() -> bool {
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mountinfo") else { return false };
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    !targets.into_iter().any(|target| target.starts_with("/proc/") && target != "/proc/sys/fs/binfmt_misc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_run_by_the_shell_that_its_arguments_name() {
        let cases = [
            ("", &["/bin/sh", "-ex", "/x"][..]),
            ("-v", &["/bin/sh", "-ex", "-v", "/x"]),
            ("-c /bin/bash -e", &["/bin/sh", "-ex", "-c", "/bin/bash -e /x"]),
            ("-u -c /bin/busybox sh", &["/bin/sh", "-ex", "-u", "-c", "/bin/busybox sh /x"]),
        ];
        for (arguments, expected) in cases {
            let script = Script { arguments: arguments.into(), text: String::new() };
            assert_eq!(argv("post", "/x", &script).unwrap(), expected, "{arguments}");
        }
        assert!(argv("post", "/x", &Script { arguments: "-c".into(), text: String::new() }).is_err());
    }
}
