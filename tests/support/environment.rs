//! A place of its own for each test, and siphon run in it.

use super::image::Images;
use super::{WhileUsed, is_root};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The account that root runs siphon as; made by `tests/setup`.
const UNPRIVILEGED_ACCOUNT: &str = "siphon-test";
/// Nothing in these tests takes this long; a command that does hangs.
const COMMAND_LIMIT: Duration = Duration::from_secs(90);
/// How long daemons may take to leave: the idle time of one second and a loaded machine's delay.
const LEAVE_LIMIT: Duration = Duration::from_secs(20);

/// The binary under its three names and the images, readable by everyone.
struct Shared {
    directory: TempDir,
    images: OnceLock<Images>,
}

static SHARED: WhileUsed<Shared> = WhileUsed::new();

impl Shared {
    fn make() -> Self {
        let directory = open_directory("siphon-shared-");
        let binary = directory.path().join("siphon");
        std::fs::copy(env!("CARGO_BIN_EXE_siphon"), &binary).unwrap();
        for name in ["singularity", "apptainer"] {
            symlink("siphon", directory.path().join(name)).unwrap();
        }
        Self { directory, images: OnceLock::new() }
    }
}

/// A directory that everyone may enter, gone with its owner.
pub(crate) fn open_directory(prefix: &str) -> TempDir {
    let directory = tempfile::Builder::new().prefix(prefix).tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    directory
}

/// Home, working directory, cache and runtime directory of one test, and the account that owns them.
pub(crate) struct TestEnvironment {
    directory: TempDir,
    shared: Arc<Shared>,
    user: nix::unistd::User,
}

/// Runs `body` as an unprivileged user and, if the tests run as root, as root too.
pub(crate) fn as_user_and_as_root(body: impl Fn(&TestEnvironment)) {
    body(&TestEnvironment::new());
    if is_root() {
        body(&TestEnvironment::root());
    }
}

impl TestEnvironment {
    /// An environment of an unprivileged user.
    pub(crate) fn new() -> Self {
        Self::of(if is_root() {
            nix::unistd::User::from_name(UNPRIVILEGED_ACCOUNT)
        } else {
            nix::unistd::User::from_uid(nix::unistd::geteuid())
        })
    }

    /// An environment of the user that the tests run as, for those that run as root.
    pub(crate) fn root() -> Self {
        Self::of(nix::unistd::User::from_uid(nix::unistd::geteuid()))
    }

    fn of(user: nix::Result<Option<nix::unistd::User>>) -> Self {
        let user = user.unwrap().expect("the account is missing: run tests/setup first");
        let directory = open_directory("siphon-test-");
        let environment = Self { directory, shared: SHARED.get(Shared::make), user };
        for name in ["home", "work", "cache", "run", "state"] {
            let path = environment.directory.path().join(name);
            std::fs::create_dir(&path).unwrap();
            environment.give(&path);
        }
        std::fs::set_permissions(environment.runtime_directory(), PermissionsExt::from_mode(0o700)).unwrap();
        environment
    }

    /// The images that every test may read, made when the first one asks for them.
    pub(crate) fn images(&self) -> &Images {
        self.shared.images.get_or_init(|| Images::make(self.shared.directory.path()))
    }

    /// The directory that commands start in, owned by their user.
    pub(crate) fn work(&self) -> PathBuf {
        self.directory.path().join("work")
    }

    /// Where siphon keeps its daemons' state.
    pub(crate) fn runtime_directory(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// What siphon keeps between runs.
    pub(crate) fn cache(&self) -> PathBuf {
        self.directory.path().join("cache/siphon")
    }

    /// Waits until the daemons, which nobody uses any more, are gone.
    pub(crate) fn wait_for_daemons_to_leave(&self) {
        let deadline = Instant::now() + LEAVE_LIMIT;
        while !self.daemons().is_empty() {
            assert!(Instant::now() < deadline, "daemons stay: {:?}", self.processes());
            sleep(Duration::from_millis(50));
        }
    }

    /// The account that commands run as.
    pub(crate) fn user(&self) -> &nix::unistd::User {
        &self.user
    }

    /// Writes a file that belongs to the commands' user into the working directory and returns its path.
    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.work().join(name);
        std::fs::write(&path, content).unwrap();
        self.give(&path);
        path
    }

    /// Makes a directory that belongs to the commands' user in the working directory and returns its path.
    pub(crate) fn make_directory(&self, name: &str) -> PathBuf {
        let path = self.work().join(name);
        std::fs::create_dir(&path).unwrap();
        self.give(&path);
        path
    }

    fn give(&self, path: &Path) {
        chown(path, Some(self.user.uid.as_raw()), Some(self.user.gid.as_raw())).unwrap();
    }

    /// A siphon command with `arguments`, not started.
    pub(crate) fn siphon<A: AsRef<std::ffi::OsStr>>(&self, arguments: &[A]) -> Invocation {
        self.program("siphon", arguments)
    }

    /// The same under another of its names.
    pub(crate) fn program<A: AsRef<std::ffi::OsStr>>(&self, name: &str, arguments: &[A]) -> Invocation {
        let mut command = Command::new(self.shared.directory.path().join(name));
        command.args(arguments);
        self.prepare(command)
    }

    /// A line for the host's shell, in which `siphon` and its other names can be called. Signals that whoever started
    /// the tests ignored, as a shell does for what it starts in the background, are not ignored there.
    pub(crate) fn shell(&self, line: &str) -> Invocation {
        let mut command = Command::new("/usr/bin/env");
        command.args(["--default-signal=HUP,INT,QUIT,TERM", "/bin/sh", "-c", line]);
        self.prepare(command)
    }

    fn prepare(&self, mut command: Command) -> Invocation {
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", self.shared.directory.path().display());
        command
            .env_clear()
            .env("PATH", path)
            // Inside a container home is the account's own; this is for programs of the host.
            .env("HOME", self.directory.path().join("home"))
            .env("USER", &self.user.name)
            .env("TERM", "dumb")
            .env("SIPHON_CACHEDIR", self.directory.path().join("cache"))
            .env("SIPHON_CONFIGDIR", self.directory.path().join("state"))
            .env("SIPHON_RUNTIME_DIR", self.runtime_directory())
            .env("SIPHON_IDLE_SECONDS", "1")
            .current_dir(self.work());
        if is_root() {
            // Groups of the caller are dropped as well, as `login` would.
            command.uid(self.user.uid.as_raw()).gid(self.user.gid.as_raw());
        }
        Invocation { command, stdin: Vec::new() }
    }

    /// The command lines of this environment's processes by id, found by its directory in their arguments or variables.
    pub(crate) fn processes(&self) -> BTreeMap<i32, String> {
        let wanted = self.directory.path().to_str().unwrap();
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            // A process may end while it is looked at.
            let read = |name| {
                let bytes = std::fs::read(entry.path().join(name)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).replace('\0', " ")
            };
            let line = read("cmdline");
            if line.contains(wanted) || read("environ").contains(wanted) {
                found.insert(pid, line);
            }
        }
        found
    }

    /// The ids of this environment's daemons.
    pub(crate) fn daemons(&self) -> Vec<i32> {
        let runtime = self.runtime_directory();
        let runtime = runtime.to_str().unwrap();
        self.processes().into_iter().filter(|(_, line)| line.contains(runtime)).map(|(pid, _)| pid).collect()
    }

    /// What is still there of the commands: processes, mounts, state.
    fn leftovers(&self) -> Vec<String> {
        let own = self.directory.path().to_str().unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut found: Vec<_> =
            self.processes().into_iter().map(|(pid, line)| format!("process {pid}: {line}")).collect();
        found.extend(mounts.lines().filter(|line| line.contains(own)).map(|line| format!("mount: {line}")));
        let state = std::fs::read_dir(self.runtime_directory()).unwrap().map(|entry| entry.unwrap());
        // What a trial of the kernel's overlayfs came to is for the next daemon to know.
        let state = state.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"overlayfs-"));
        found.extend(state.map(|entry| {
            let files = std::fs::read_dir(entry.path()).into_iter().flatten().flatten();
            let files: Vec<_> = files.map(|file| file.file_name()).collect();
            let log = std::fs::read_to_string(entry.path().join("log")).unwrap_or_default();
            format!("state: {} with {files:?}; its log: {log}", entry.path().display())
        }));
        found
    }
}

impl Drop for TestEnvironment {
    /// Asserts that the commands left nothing behind.
    fn drop(&mut self) {
        let deadline = Instant::now() + LEAVE_LIMIT;
        while !std::thread::panicking() && !self.leftovers().is_empty() && Instant::now() < deadline {
            sleep(Duration::from_millis(50));
        }
        let leftovers = self.leftovers();
        for pid in self.processes().into_keys() {
            // It may have ended by itself meanwhile.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        assert!(std::thread::panicking() || leftovers.is_empty(), "left behind:\n{}", leftovers.join("\n"));
    }
}

/// A command with its environment, ready to run.
pub(crate) struct Invocation {
    command: Command,
    stdin: Vec<u8>,
}

impl Invocation {
    /// Sets a variable of the command's environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives the command these bytes on a pipe; without them its input is empty.
    pub(crate) fn stdin(mut self, bytes: &[u8]) -> Self {
        self.stdin = bytes.to_vec();
        self
    }

    /// Starts the command below another program that listens for system calls.
    pub(crate) fn below_a_listener(mut self) -> Self {
        super::listener::install(&mut self.command);
        self
    }

    /// Starts the command and leaves it running, its output piped.
    pub(crate) fn spawn(mut self) -> Child {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.command.spawn().unwrap()
    }

    /// Runs the command to its end.
    pub(crate) fn run(self) -> Finished {
        let described = format!("{:?}", self.command);
        let stdin = self.stdin.clone();
        let mut child = self.spawn();
        // A program that does not read its input closes the pipe early.
        let _ = child.stdin.take().unwrap().write_all(&stdin);
        let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
        let (ended, watched) = mpsc::channel::<()>();
        let watch = std::thread::spawn(move || {
            let late = watched.recv_timeout(COMMAND_LIMIT) == Err(mpsc::RecvTimeoutError::Timeout);
            late.then(|| nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL))
        });
        let output = child.wait_with_output().unwrap();
        drop(ended);
        assert!(watch.join().unwrap().is_none(), "took more than {COMMAND_LIMIT:?}: {described}");
        Finished::new(described, &output)
    }

    /// Runs the command, asserts that it succeeds, and returns what it printed, without the last line's end.
    pub(crate) fn stdout(self) -> String {
        let finished = self.run();
        assert_eq!(finished.code, 0, "{finished}");
        finished.stdout.trim_end_matches('\n').to_owned()
    }
}

/// A command that ended.
#[derive(Debug)]
pub(crate) struct Finished {
    described: String,
    /// The exit code as a shell shows it: 128 + n after signal n.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    fn new(described: String, output: &Output) -> Self {
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { described, code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { described, code, stdout, stderr } = self;
        write!(formatter, "{described}\nexit code {code}\n-- stdout\n{stdout}\n-- stderr\n{stderr}")
    }
}
