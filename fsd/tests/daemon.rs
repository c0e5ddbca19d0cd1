//! Whole daemons: started, joined, killed and left alone. Runs as an unprivileged user where it is started as root.
//!
//! The test program is three: without arguments it runs the tests, with `daemon` it serves, with `client` or `start` it joins.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a test that reports by itself")]

use nix::sched::{CloneFlags, unshare};
use siphon_fsd::control::{self, MountPointKind, Status};
use siphon_fsd::daemon::{self, DaemonError, Ids, Joined, Layer, LayerEngine, Placement, Spec};
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Long enough for the clients of a test to follow each other, short enough to wait for its end.
const IDLE: Duration = Duration::from_secs(2);

/// An id that no account of a test machine has.
const UNPRIVILEGED: u32 = 1600;

/// A test on a directory that holds `image.sqfs` and the `tree` it was made of.
type Test = fn(&Path);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match words.as_slice() {
        ["daemon", "--state", state, "--", _image] => daemon::serve(Path::new(state)).unwrap(),
        ["client", directory, script] => client(Path::new(directory), script),
        ["start", directory, image] => drop(join_image(Path::new(directory), (*image).to_owned()).unwrap()),
        ["tests", directory] => run(Path::new(directory)),
        _ => drop_privileges_and_run(),
    }
}

/// Joins and runs `script` with the root of the image as `$1`, bound elsewhere in a mount namespace of its own, as a
/// container has it.
fn client(directory: &Path, script: &str) {
    let joined = join(directory).unwrap();
    let points = [("/a/b/c", MountPointKind::Directory), ("/etc/file", MountPointKind::File)];
    let made = joined.make_mount_points(&points.map(|(path, kind)| (path.into(), kind))).unwrap();
    assert_eq!(made, [PathBuf::from("a/b/c"), PathBuf::from("etc/file")]);
    joined.enter().unwrap();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let place = directory.join("place");
    rustix::mount::mount_bind(&joined.root, &place).unwrap();
    let status = Command::new("sh").args(["-ec", script, "sh"]).arg(&place).status().unwrap();
    std::process::exit(status.code().unwrap_or(1));
}

fn join(directory: &Path) -> Result<Joined, DaemonError> {
    join_image(directory, directory.join("image.sqfs").display().to_string())
}

fn join_image(directory: &Path, image: String) -> Result<Joined, DaemonError> {
    let spec = Spec {
        image,
        overlays: Vec::new(),
        layer: Layer::ReadOnly,
        memory_bytes: None,
        ids: Ids::Caller,
        scope: "test".to_owned(),
        cache_dir: directory.join("cache"),
        cache_bytes: None,
        idle: IDLE,
        placement: Placement::InNamespace,
        engine: LayerEngine::Auto,
    };
    daemon::join(&spec, &[runtime_dir(directory)], &std::env::current_exe().unwrap())
}

fn runtime_dir(directory: &Path) -> PathBuf {
    directory.join("run")
}

fn drop_privileges_and_run() {
    let program = std::env::current_exe().unwrap();
    let directory = tempfile::Builder::new().prefix("siphon-daemon-").tempdir_in("/var/tmp").unwrap();
    make_image(directory.path());
    let mut command = if rustix::process::geteuid().is_root() {
        // Where the program was built may be closed to others.
        let copy = directory.path().join("test");
        fs::copy(&program, &copy).unwrap();
        std::os::unix::fs::chown(directory.path(), Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
        let id = UNPRIVILEGED.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(copy);
        command
    } else {
        Command::new(&program)
    };
    let status = command.arg("tests").arg(directory.path()).status().unwrap();
    assert!(status.success(), "tests failed: {status}");
    directory.close().unwrap();
}

fn make_image(directory: &Path) {
    let tree = directory.join("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::create_dir_all(tree.join("many")).unwrap();
    fs::create_dir_all(directory.join("place")).unwrap();
    for number in 0..3000 {
        fs::write(tree.join(format!("many/file{number}")), number.to_string()).unwrap();
    }
    fs::write(tree.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    fs::write(tree.join("large"), vec![7; 5_000_000]).unwrap();
    std::os::unix::fs::symlink("etc/passwd", tree.join("link")).unwrap();
    fs::set_permissions(tree.join("etc/passwd"), fs::Permissions::from_mode(0o600)).unwrap();
    let image = directory.join("image.sqfs");
    let made = Command::new("mksquashfs").arg(&tree).arg(&image).args(["-quiet", "-no-progress"]).status().unwrap();
    assert!(made.success());
    Command::new("chmod").arg("-R").arg("a+rX").args([&tree, &image]).status().unwrap();
}

fn run(directory: &Path) {
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        assert!(std::env::var_os("CI").is_none(), "/dev/fuse: {error}");
        println!("skipped: /dev/fuse: {error}");
        return;
    }
    let tests: [(&str, Test); 13] = [
        ("twenty_clients_at_once_share_one_daemon", twenty_clients_at_once_share_one_daemon),
        ("a_client_sees_the_tree_of_the_image", a_client_sees_the_tree_of_the_image),
        ("a_read_only_image_takes_no_writes", a_read_only_image_takes_no_writes),
        ("a_killed_daemon_is_replaced", a_killed_daemon_is_replaced),
        ("a_daemon_that_cannot_start_says_why", a_daemon_that_cannot_start_says_why),
        (
            "a_daemon_stays_for_background_programs_and_then_leaves_nothing",
            a_daemon_stays_for_background_programs_and_then_leaves_nothing,
        ),
        ("a_daemon_waits_for_more_clients_after_a_long_run", a_daemon_waits_for_more_clients_after_a_long_run),
        (
            "a_daemon_that_was_replaced_leaves_its_successor_alone",
            a_daemon_that_was_replaced_leaves_its_successor_alone,
        ),
        ("a_daemon_may_open_more_files_than_its_starter", a_daemon_may_open_more_files_than_its_starter),
        ("an_interrupted_start_holds_the_next_one_up", an_interrupted_start_holds_the_next_one_up),
        ("what_was_read_is_read_ahead_the_next_time", what_was_read_is_read_ahead_the_next_time),
        ("all_that_a_jump_had_decoded_is_there_next", all_that_a_jump_had_decoded_is_there_next),
        ("who_only_connects_does_not_keep_a_daemon", who_only_connects_does_not_keep_a_daemon),
    ];
    for (name, test) in tests {
        print!("{name} ... ");
        std::io::stdout().flush().unwrap();
        test(directory);
        println!("ok");
    }
    // A daemon that is still there writes into the directory that is about to be removed.
    wait_until("the last daemon has left", || fs::read_dir(runtime_dir(directory)).unwrap().count() == 0);
}

fn in_image(directory: &Path, script: &str) -> Output {
    let output = client_command(directory, script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn client_command(directory: &Path, script: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("client").arg(directory).arg(script).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn daemons(directory: &Path) -> Vec<Status> {
    control::list(&[runtime_dir(directory)]).unwrap()
}

fn is_running(pid: i32) -> bool {
    // A zombie, whose parent does not wait for it, runs no more.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited for too long: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn twenty_clients_at_once_share_one_daemon(directory: &Path) {
    let clients: Vec<_> = (0..20).map(|_| client_command(directory, "sleep 1").spawn().unwrap()).collect();
    for client in clients {
        let output = client.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    assert_eq!(daemons(directory).len(), 1);
}

fn a_client_sees_the_tree_of_the_image(directory: &Path) {
    let tree = directory.join("tree");
    let script = format!(
        "diff -r --no-dereference {} $1 || true; test -d $1/a/b/c; test -f $1/etc/file; stat -c %u:%g $1/large; \
         ls $1/many | wc -l; wc -c < $1/large",
        tree.display()
    );

    let output = in_image(directory, &script);

    let place = directory.join("place").display().to_string();
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let expected = format!("Only in {place}: a\nOnly in {place}/etc: file\n{uid}:{gid}\n3000\n5000000\n");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert!(daemons(directory)[0].bytes_read >= 5_000_000);
}

fn a_read_only_image_takes_no_writes(directory: &Path) {
    in_image(directory, "! touch $1/new 2>/dev/null; ! rm $1/large 2>/dev/null; ! chmod 700 $1/etc 2>/dev/null");
}

fn a_killed_daemon_is_replaced(directory: &Path) {
    in_image(directory, "true");
    let first = daemons(directory)[0].pid;

    Command::new("kill").args(["-9", &first.to_string()]).status().unwrap();
    wait_until("the killed daemon is gone", || !is_running(first));
    in_image(directory, "cat $1/etc/passwd");

    let second = daemons(directory);
    assert_eq!(second.len(), 1);
    assert_ne!(second[0].pid, first);
}

fn a_daemon_that_cannot_start_says_why(directory: &Path) {
    let elsewhere = directory.join("elsewhere");
    fs::create_dir_all(&elsewhere).unwrap();
    fs::write(elsewhere.join("image.sqfs"), "this is no image").unwrap();

    let error = join(&elsewhere).unwrap_err();

    assert!(matches!(&error, DaemonError::Start { message, .. } if message.contains("image.sqfs")), "{error}");
    assert_eq!(fs::read_dir(runtime_dir(&elsewhere)).unwrap().count(), 0);
}

fn a_daemon_stays_for_background_programs_and_then_leaves_nothing(directory: &Path) {
    let late = directory.join("late");
    let script = format!("(sleep 8; cat $1/etc/passwd > {}) >/dev/null 2>&1 &", late.display());
    in_image(directory, &script);
    let pid = daemons(directory)[0].pid;

    wait_until("the program has read", || fs::metadata(&late).is_ok_and(|late| late.len() == 26));
    wait_until("the daemon has left", || fs::read_dir(runtime_dir(directory)).unwrap().count() == 0);
    wait_until("the process has ended", || !is_running(pid));
}

fn a_daemon_waits_for_more_clients_after_a_long_run(directory: &Path) {
    in_image(directory, "sleep 3");
    std::thread::sleep(IDLE / 4);

    assert_eq!(daemons(directory).len(), 1);
}

fn a_daemon_that_was_replaced_leaves_its_successor_alone(directory: &Path) {
    in_image(directory, "true");
    let first = daemons(directory)[0].pid;

    for state in fs::read_dir(runtime_dir(directory)).unwrap() {
        fs::remove_file(state.unwrap().path().join("socket")).unwrap();
    }
    let output = in_image(directory, "sleep 3; cat $1/etc/passwd");

    assert_eq!(output.stdout.len(), 26);
    assert!(!is_running(first));
    assert_eq!(daemons(directory).len(), 1);
}

fn a_daemon_may_open_more_files_than_its_starter(directory: &Path) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    in_image(directory, "true");
    Command::new("kill").arg("-9").arg(daemons(directory)[0].pid.to_string()).status().unwrap();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), ..limit }).unwrap();

    in_image(directory, "true");
    setrlimit(Resource::Nofile, limit).unwrap();

    let limits = fs::read_to_string(format!("/proc/{}/limits", daemons(directory)[0].pid)).unwrap();
    let open_files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<&str> = open_files.split_whitespace().skip(3).collect();
    assert_eq!(numbers[0], numbers[1]);
}

fn an_interrupted_start_holds_the_next_one_up(directory: &Path) {
    let elsewhere = directory.join("slow");
    fs::create_dir(&elsewhere).unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/image.sqfs", server.local_addr().unwrap());
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut client = command.arg("start").arg(&elsewhere).arg(url).stderr(Stdio::null()).spawn().unwrap();

    let (request, _) = server.accept().unwrap();
    client.kill().unwrap();
    client.wait().unwrap();

    let state = fs::read_dir(runtime_dir(&elsewhere)).unwrap().next().unwrap().unwrap().path();
    let lock = fs::File::open(state.join("lock")).unwrap();
    let try_lock = || rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    assert!(try_lock().is_err());
    drop((request, server));
    wait_until("the daemon has given up", || try_lock().is_ok());
}

fn what_was_read_is_read_ahead_the_next_time(directory: &Path) {
    let leave = || wait_until("the daemon has left", || fs::read_dir(runtime_dir(directory)).unwrap().count() == 0);
    let jump_about = "for place in 30 3 21 9 35 17 1 26 12; do \
                      dd if=$1/large bs=128k skip=$place count=1 status=none >/dev/null; sleep 0.1; done";
    leave();
    fs::remove_dir_all(directory.join("cache/traces")).unwrap();

    in_image(directory, jump_about);
    let first = daemons(directory)[0].counters;
    leave();
    in_image(directory, jump_about);
    let second = daemons(directory)[0].counters;

    assert!(second.requests.bytes_read_ahead > first.requests.bytes_read_ahead, "{first:?} {second:?}");
    assert!(second.requests.bytes_read < first.requests.bytes_read, "{first:?} {second:?}");
    for trace in fs::read_dir(directory.join("cache/traces")).unwrap() {
        fs::write(trace.unwrap().path(), b"siphtr01 and nothing that makes sense after it, of any length").unwrap();
    }
    leave();
    in_image(directory, &format!("cmp $1/large {}/tree/large", directory.display()));
}

fn all_that_a_jump_had_decoded_is_there_next(directory: &Path) {
    const BLOCK_BYTES: u64 = 128 << 10;
    let go_on = directory.join("go_on");
    let jump_about = |page: u32| {
        let pages: String = (0..30).map(|place| format!(" {}", 32 * (place * 11 % 30) + page)).collect();
        format!("for page in{pages}; do dd if=$1/large bs=4k skip=$page count=1 status=none >/dev/null; done")
    };
    let wait = format!("until test -e {}; do sleep 0.01; done", go_on.display());
    wait_until("the daemon has left", || fs::read_dir(runtime_dir(directory)).unwrap().count() == 0);
    fs::remove_dir_all(directory.join("cache/traces")).unwrap();

    let script = format!("{}; {}; {wait}; {}", jump_about(7), jump_about(14), jump_about(20));
    let client = client_command(directory, &script).spawn().unwrap();
    let counted = || daemons(directory).first().map(|daemon| daemon.counters.requests).unwrap_or_default();
    wait_until("what was decoded is handed over", || counted().bytes_read_ahead >= 28 * BLOCK_BYTES);
    let first = counted();
    fs::write(&go_on, "").unwrap();
    assert!(client.wait_with_output().unwrap().status.success());

    let second = daemons(directory)[0].counters.requests;
    assert!(second.reads - first.reads <= 4, "{first:?} {second:?}");
}

fn who_only_connects_does_not_keep_a_daemon(directory: &Path) {
    in_image(directory, "true");
    let pid = daemons(directory)[0].pid;
    let state = fs::read_dir(runtime_dir(directory)).unwrap().next().unwrap().unwrap().path();

    let start = Instant::now();
    while is_running(pid) {
        // As the start of another image's daemon does.
        drop(UnixStream::connect(state.join("socket")));
        assert!(start.elapsed() < 4 * IDLE, "the daemon stays");
        std::thread::sleep(IDLE / 10);
    }
}
