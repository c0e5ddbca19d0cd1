use super::in_image::{exec, printed};
use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Starts such a line and waits for the first line that it prints.
fn started(environment: &TestEnvironment, options: &[&str], line: &str) -> (Child, BufReader<ChildStdout>, String) {
    let arguments = [&["exec"], options, &[environment.images().sif(), "sh", "-c", line]].concat();
    let mut child = environment.siphon(&arguments).spawn();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    output.read_line(&mut first).unwrap();
    (child, output, first.trim_end().to_owned())
}

fn id(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().unwrap())
}

/// Waits until the state of a process, a letter as in `ps`, is `wanted`.
fn wait_for_state(process: Pid, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let state = status.rsplit(") ").next().and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        if state == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "process {process} is {state:?} and not {wanted:?}");
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn processes_of_the_host_can_be_hidden() {
    as_user_and_as_root(|environment| {
        let line = "cat /proc/1/comm; echo $PPID; ls -d /proc/[0-9]* | wc -l";

        assert_eq!(printed(environment, &["--pid"], line), "siphon-init\n1\n4");
        assert_eq!(printed(environment, &["-p", "--no-init"], "cat /proc/1/comm; echo $$"), "sh\n1");
        assert_ne!(printed(environment, &["--pid", "--no-pid"], "cat /proc/1/comm"), "siphon-init");
    });
}

#[test]
fn exit_codes_and_signals_pass_through_an_init() {
    let environment = TestEnvironment::new();

    for code in [0, 3, 255] {
        assert_eq!(exec(&environment, &["--pid"], &format!("exit {code}")).code, code);
        assert_eq!(exec(&environment, &["--pid", "--no-init"], &format!("exit {code}")).code, code);
    }
    for (signal, number) in [("TERM", 15), ("KILL", 9), ("40", 40)] {
        assert_eq!(exec(&environment, &["--pid"], &format!("kill -{signal} $$")).code, 128 + number, "{signal}");
    }
    let missing = environment.siphon(&["exec", "--pid", environment.images().sif(), "no-such-program"]).run();
    assert_eq!(missing.code, 255, "{missing}");
}

#[test]
fn a_signal_to_siphon_reaches_the_program_behind_the_init() {
    let environment = TestEnvironment::new();
    for options in [&["--pid"][..], &["--pid", "--no-init"]] {
        let line = "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
        let (mut child, mut output, first) = started(&environment, options, line);
        assert_eq!(first, "ready");

        kill(id(&child), Signal::SIGTERM).unwrap();

        let mut answer = String::new();
        output.read_line(&mut answer).unwrap();
        assert_eq!(answer, "caught\n", "{options:?}");
        assert_eq!(child.wait().unwrap().code(), Some(7), "{options:?}");
    }
}

#[test]
fn a_program_that_stops_stops_siphon_and_goes_on_with_it() {
    let environment = TestEnvironment::new();
    let (mut child, mut output, first) = started(&environment, &["--pid"], "echo ready; kill -STOP $$; echo again");
    assert_eq!(first, "ready");

    wait_for_state(id(&child), "T");
    kill(id(&child), Signal::SIGCONT).unwrap();

    let mut answer = String::new();
    output.read_line(&mut answer).unwrap();
    assert_eq!(answer, "again\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_init_reaps_what_programs_leave_behind() {
    let environment = TestEnvironment::new();
    let line = "(sleep 0.1 & exec true); for i in $(seq 200); do
        left=$(cat /proc/[0-9]*/stat | grep -c -e ' Z ' -e '(sleep)'); [ $left = 0 ] && break; sleep 0.05; done; echo $left";

    assert_eq!(exec(&environment, &["--pid"], line).stdout.trim(), "0");
}

#[test]
fn background_programs_end_with_the_program_where_processes_are_hidden() {
    let environment = TestEnvironment::new();

    assert_eq!(printed(&environment, &["--pid"], "sleep 1000 >/dev/null 2>&1 & echo over"), "over");

    // That nothing is left is asserted where the environment goes.
}

#[test]
fn nothing_is_left_when_any_process_of_a_container_is_killed() {
    let environment = TestEnvironment::new();
    for options in [&["--pid"][..], &["--pid", "--no-init"]] {
        let (mut child, _output, _) = started(&environment, options, "sleep 1000 & echo ready; wait");
        kill(id(&child), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
    }
    // The init has its parent's command line, and is the process whose parent was started here.
    let (mut child, _output, _) = started(&environment, &["--pid"], "sleep 1000 & echo ready; wait");
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    kill(Pid::from_raw(children.trim().parse().unwrap()), Signal::SIGKILL).unwrap();

    assert_eq!(child.wait().unwrap().code(), Some(137));
}

#[test]
fn a_reader_of_the_output_sees_its_end_when_the_program_closes_it() {
    let environment = TestEnvironment::new();
    let (mut child, mut output, _) = started(&environment, &["--pid"], "echo ready; exec sleep 1000 >/dev/null 2>&1");

    let mut rest = String::new();
    assert_eq!(output.read_line(&mut rest).unwrap(), 0);

    kill(id(&child), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn a_shell_with_processes_of_its_own_controls_its_jobs() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();
    let mut shell = environment.shell(&format!("script -qec 'siphon shell --pid {image}' /dev/null")).spawn();
    let mut input = shell.stdin.take().unwrap();
    let mut output = BufReader::new(shell.stdout.take().unwrap());
    let job = || {
        let processes = environment.processes();
        let stat = |pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let (pid, _) = processes.into_iter().find(|(_, line)| line.starts_with("sleep 1000"))?;
        stat(pid).rsplit(") ").next()?.chars().next()
    };

    // The terminal's ^Z and ^C go to the job in the foreground.
    input.write_all(b"echo re''ady\n").unwrap();
    read_until(&mut output, "ready");
    input.write_all(b"sleep 1000\n").unwrap();
    wait_until(|| job() == Some('S'));
    input.write_all(b"\x1a").unwrap();
    read_until(&mut output, "Stopped");
    assert_eq!(job(), Some('T'));
    input.write_all(b"fg\n").unwrap();
    wait_until(|| job() == Some('S'));
    input.write_all(b"\x03").unwrap();
    wait_until(|| job().is_none());
    input.write_all(b"exit 5\n").unwrap();

    let mut rest = Vec::new();
    output.read_to_end(&mut rest).unwrap();
    assert_eq!(shell.wait().unwrap().code(), Some(5));
}

/// Reads on until `words` have come.
fn read_until(output: &mut impl Read, words: &str) {
    let (mut seen, mut byte) = (Vec::new(), [0]);
    while !seen.ends_with(words.as_bytes()) {
        let read = output.read(&mut byte).unwrap();
        assert_eq!(read, 1, "the output ended: {}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
}

fn wait_until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "it did not come to pass");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn namespaces_are_had_one_by_one() {
    as_user_and_as_root(|environment| {
        let line = "for name in ipc uts net; do readlink /proc/self/ns/$name; done";
        let shared = printed(environment, &[], line);
        let shared: Vec<_> = shared.lines().collect();

        for (index, option) in [&["--ipc"][..], &["--uts"], &["--net", "--network", "none"]].into_iter().enumerate() {
            let own = printed(environment, option, line);
            for (place, name) in own.lines().enumerate() {
                assert_eq!(name == shared[place], place != index, "{option:?}: {own}");
            }
        }
    });
}

#[test]
fn a_host_name_is_the_containers_alone() {
    as_user_and_as_root(|environment| {
        let before = environment.shell("hostname").stdout();

        assert_eq!(printed(environment, &["--hostname", "inside"], "hostname"), "inside");
        assert_eq!(environment.shell("hostname").stdout(), before);
    });
}

#[test]
fn the_network_none_is_a_loopback_device() {
    as_user_and_as_root(|environment| {
        let line = "tail -n +3 /proc/net/dev | cut -d: -f1; ip -o link show lo | grep -c LOOPBACK,UP";

        assert_eq!(printed(environment, &["--net", "--network", "none"], line).trim(), "lo\n1");
    });
    let environment = TestEnvironment::new();

    let finished = exec(&environment, &["--net"], "true");

    assert_eq!(finished.code, 255, "{finished}");
    assert!(finished.stderr.contains("--network none"), "{finished}");
}
