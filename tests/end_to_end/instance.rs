use crate::support::environment::{Finished, TestEnvironment, as_user_and_as_root};
use crate::support::is_root;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::thread::sleep;
use std::time::{Duration, Instant};

fn instance(environment: &TestEnvironment, arguments: &[&str]) -> Finished {
    environment.siphon(&[&["instance"], arguments].concat()).run()
}

/// Starts an instance of the SIF.
fn start(environment: &TestEnvironment, name: &str, arguments: &[&str]) {
    let started = instance(environment, &[&["start", environment.images().sif(), name], arguments].concat());
    assert_eq!(started.code, 0, "{started}");
}

/// Runs a line of the shell in the instance.
fn exec(environment: &TestEnvironment, name: &str, line: &str) -> Finished {
    environment.siphon(&["exec", &format!("instance://{name}"), "sh", "-c", line]).run()
}

/// The instances as `list --json` has them.
fn listed(environment: &TestEnvironment) -> Vec<serde_json::Value> {
    let list = instance(environment, &["list", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&list.stdout).unwrap();
    json["instances"].as_array().unwrap().clone()
}

fn names(environment: &TestEnvironment) -> Vec<String> {
    listed(environment).iter().map(|one| one["instance"].as_str().unwrap().to_owned()).collect()
}

/// The only instance's first process.
fn first_process(environment: &TestEnvironment) -> i32 {
    i32::try_from(listed(environment)[0]["pid"].as_i64().unwrap()).unwrap()
}

fn parent(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

fn log(environment: &TestEnvironment, which: &str) -> String {
    std::fs::read_to_string(listed(environment)[0][which].as_str().unwrap()).unwrap()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come to pass");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_instance_runs_the_startscript_until_it_is_stopped() {
    as_user_and_as_root(|environment| {
        let image = environment.images().sif();

        let started = instance(environment, &["start", image, "web", "a", "b"]);

        assert_eq!((started.code, started.stdout.as_str()), (0, ""), "{started}");
        assert_eq!(started.stderr, "INFO:    instance started successfully\n");
        wait_until("the script", || log(environment, "logOutPath").contains("startscript: image: web: a b\n"));
        assert_eq!(log(environment, "logErrPath"), "startscript: to stderr\n");
        let output = listed(environment)[0]["logOutPath"].as_str().unwrap().to_owned();
        let pid = first_process(environment);
        let stopped = instance(environment, &["stop", "web"]);
        assert_eq!(stopped.stderr, format!("INFO:    Stopping web instance of {image} (PID={pid})\n"), "{stopped}");
        assert_eq!(stopped.code, 0, "{stopped}");
        assert_eq!(names(environment), [""; 0]);
        assert!(std::fs::read_to_string(output).unwrap().ends_with("caught INT\n"));
    });
}

#[test]
fn an_instance_of_the_runscript_stays_when_that_has_ended() {
    let environment = TestEnvironment::new();

    let started = instance(&environment, &["run", environment.images().sif(), "job", "x"]);

    assert_eq!(started.code, 0, "{started}");
    wait_until("the script", || log(&environment, "logOutPath") == "runscript: image: x\n");
    wait_until("its end", || exec(&environment, "job", "ps | wc -l").stdout.trim() == "4");
    assert_eq!(names(&environment), ["job"]);
    start(&environment, "other", &["short"]);
    assert_eq!(instance(&environment, &["stop", "-a", "-t", "60"]).code, 0);
    assert_eq!(names(&environment), [""; 0]);
}

#[test]
fn a_run_in_an_instance_has_its_namespaces_and_its_name() {
    as_user_and_as_root(|environment| {
        start(environment, "web", &[]);

        let kinds = ["user", "mnt", "pid", "ipc", "uts", "net"];
        let of_first = |kind| std::fs::read_link(format!("/proc/{}/ns/{kind}", first_process(environment))).unwrap();
        let expected: String = kinds.iter().map(|kind| format!("{}\n", of_first(kind).display())).collect();
        let own =
            exec(environment, "web", &format!("for n in {}; do readlink /proc/self/ns/$n; done", kinds.join(" ")));
        let variables = exec(environment, "web", "echo $APPTAINER_INSTANCE $SINGULARITY_INSTANCE $APPTAINER_COMMAND");
        let first = exec(environment, "web", "cat /proc/1/comm");

        assert_eq!(own.stdout, expected);
        assert_eq!(variables.stdout, "web web exec\n");
        assert_eq!(first.stdout, "siphon-init\n");
        let image = environment.images().sif();
        let run = environment.siphon(&["run", "instance://web", "x"]).env("MINE", "1").run();
        assert_eq!(run.stdout, "runscript: image: x\n", "{run}");
        let shell = environment.siphon(&["shell", "instance://web"]).stdin(b"echo $APPTAINER_CONTAINER; pwd").run();
        assert_eq!(shell.stdout, format!("{image}\n{}\n", environment.work().display()), "{shell}");
        let options = ["exec", "-e", "--env", "A=b", "--pwd", "/data", "-B", "/etc:/mnt", "instance://web"];
        let line = "echo $A,$MINE; pwd; ls -d /mnt/passwd";
        let clean = environment.siphon(&[&options[..], &["sh", "-c", line]].concat()).env("MINE", "1").run();
        assert_eq!(clean.stdout, "b,\n/data\n", "{clean}");
        instance(environment, &["stop", "web"]);
    });
}

#[test]
fn exit_codes_and_signals_come_through_from_an_instance() {
    let environment = TestEnvironment::new();
    start(&environment, "web", &[]);

    assert_eq!(exec(&environment, "web", "exit 7").code, 7);
    assert_eq!(exec(&environment, "web", "kill -9 $$").code, 137);
    let missing = environment.siphon(&["exec", "instance://web", "no-such-program"]).run();
    assert_eq!(missing.code, 255, "{missing}");
    let line = "trap 'exit 9' TERM; touch ready; while :; do sleep 0.1; done";
    let mut child = environment.siphon(&["exec", "instance://web", "sh", "-c", line]).spawn();
    wait_until("the run", || environment.work().join("ready").exists());
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
    instance(&environment, &["stop", "web"]);
}

#[test]
fn instances_and_runs_of_an_image_share_a_daemon_that_stays_with_them() {
    let environment = TestEnvironment::new();
    start(&environment, "one", &[]);
    start(&environment, "two", &[]);
    let serving = || environment.siphon(&["status", "--json"]).stdout();
    let daemon = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()[0]["pid"].clone();
    let before = daemon(&serving());

    environment.siphon(&["exec", environment.images().sif(), "true"]).stdout();
    instance(&environment, &["stop", "one"]);
    // The daemon waits for one second, and would be gone.
    sleep(Duration::from_secs(3));

    assert_eq!(daemon(&serving()), before);
    assert_eq!(exec(&environment, "two", "md5sum < /data/payload | wc -l").stdout, "1\n");
    instance(&environment, &["stop", "two"]);
}

#[test]
fn an_instance_survives_the_shell_that_started_it_and_holds_nothing_of_it() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();

    // The shell's output and descriptor 7 are pipes, whose readers wait for the last one who has them open.
    let line = format!("exec 7>&1; setsid sh -c 'siphon instance start {image} web' | cat; echo over");
    let finished = environment.shell(&line).run();

    assert_eq!(finished.stdout, "over\n", "{finished}");
    assert_eq!(names(&environment), ["web"]);
    let init = first_process(&environment);
    let script = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", script.trim())).unwrap();
    let open: Vec<_> = descriptors.map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap()).collect();
    assert!(!open.iter().any(|target| target.to_str().unwrap().starts_with("pipe:")), "{open:?}");
    instance(&environment, &["stop", "web"]);
}

#[test]
fn a_name_is_one_instances_and_free_again_after_it() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();
    start(&environment, "web", &[]);

    let again = instance(&environment, &["start", image, "web"]);
    let invalid = instance(&environment, &["start", image, "bad/name"]);
    let nested = instance(&environment, &["start", "instance://web", "other"]);

    assert_eq!((again.code, again.stderr.as_str()), (255, "FATAL:   instance web already exists\n"));
    assert_eq!((invalid.code, invalid.stderr.as_str()), (255, "FATAL:   bad/name is not a valid instance name\n"));
    assert_eq!(nested.code, 255);
    assert!(nested.stderr.contains("starting an instance from another is not allowed"), "{nested}");
    instance(&environment, &["stop", "web"]);
    start(&environment, "web", &[]);
    instance(&environment, &["stop", "web"]);
}

#[test]
fn a_start_that_fails_says_why_and_leaves_the_name() {
    let environment = TestEnvironment::new();

    let missing = instance(&environment, &["start", "no-such.sif", "web"]);
    let bind = instance(&environment, &["start", "-B", "/no-such", environment.images().sif(), "web"]);
    let cwd = instance(&environment, &["start", "--pwd", "/no-such", environment.images().sif(), "web"]);
    let boot = instance(&environment, &["start", "--boot", environment.images().sif(), "web"]);

    for (finished, reason) in [(missing, "no-such.sif"), (bind, "/no-such"), (cwd, "/no-such"), (boot, "--boot")] {
        assert_eq!(finished.code, 255, "{finished}");
        assert!(finished.stderr.starts_with("FATAL:   ") && finished.stderr.contains(reason), "{finished}");
        assert_eq!(finished.stderr.lines().count(), 1, "{finished}");
    }
    start(&environment, "web", &[]);
    instance(&environment, &["stop", "web"]);
}

#[test]
fn what_is_not_there_is_not_found() {
    let environment = TestEnvironment::new();

    let exec = exec(&environment, "nope", "true");
    assert_eq!(exec.code, 255);
    assert_eq!(exec.stderr, "FATAL:   While setting image/instance: no instance found with name nope\n");
    for arguments in [&["stop", "nope"][..], &["stop", "-a"], &["stats", "nope"]] {
        let finished = instance(&environment, arguments);
        assert_eq!(finished.code, 1, "{finished}");
        assert!(finished.stderr.contains("no instance found"), "{finished}");
    }
    assert_eq!(instance(&environment, &["stop"]).code, 1);
}

#[test]
fn an_instance_is_stopped_by_force_where_it_must_be() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();
    for name in ["one", "two", "three"] {
        start(&environment, name, &["stubborn"]);
    }
    start(&environment, "four", &[]);
    wait_until("the traps", || log(&environment, "logOutPath").contains("four"));

    let late = instance(&environment, &["stop", "-t", "1", "one"]);
    let began = Instant::now();
    let forced = instance(&environment, &["stop", "-F", "t*"]);
    let forced_for = began.elapsed();
    let output = listed(&environment)[0]["logOutPath"].as_str().unwrap().to_owned();
    let signalled = instance(&environment, &["stop", "-s", "TERM", "four"]);
    let unknown = instance(&environment, &["stop", "-s", "FOO", "four"]);

    assert!(late.stderr.contains(&format!("Killing one instance of {image} (PID=")), "{late}");
    assert!(late.stderr.trim_end().ends_with("(Timeout)"), "{late}");
    assert_eq!(forced.stderr.matches("Stopping t").count(), 2, "{forced}");
    assert!(!forced.stderr.contains("Killing") && forced_for < Duration::from_secs(9), "{forced} {forced_for:?}");
    assert!(!signalled.stderr.contains("Killing"), "{signalled}");
    assert!(std::fs::read_to_string(output).unwrap().ends_with("caught TERM\n"));
    assert_eq!(unknown.stderr, "FATAL:   Could not convert stop signal: FOO is not a number\n");
    assert_eq!(names(&environment), [""; 0]);
}

#[test]
fn lists_have_the_form_of_apptainers() {
    let environment = TestEnvironment::new();
    assert_eq!(instance(&environment, &["list"]).stdout, "INSTANCE NAME    PID    IP    IMAGE\n");
    start(&environment, "three", &[]);
    start(&environment, "web", &[]);
    let image = environment.images().sif();
    let list = |arguments: &[&str]| instance(&environment, &[&["list"], arguments].concat());

    let pids: Vec<_> = listed(&environment).iter().map(|one| one["pid"].as_i64().unwrap().to_string()).collect();
    let width = 4 + pids.iter().map(String::len).max().unwrap().max(3);
    let line = |name: &str, pid: &str| format!("{name:<17}{pid:<width$}      {image}\n");
    let header = format!("INSTANCE NAME    {:<width$}IP    IMAGE\n", "PID");
    let (three, web) = (line("three", &pids[0]), line("web", &pids[1]));
    assert_eq!(list(&[]).stdout, format!("{header}{three}{web}"));
    assert_eq!(list(&["t*"]).stdout, format!("{header}{three}"));
    let logs = list(&["-l", "web"]).stdout;
    let lines: Vec<_> = logs.lines().collect();
    assert!(lines[0].ends_with("LOGS") && lines[1].ends_with("/logs/web.err"), "{logs}");
    assert!(lines[2].ends_with("/logs/web.out") && lines[2].starts_with("    "), "{logs}");
    assert!(list(&["-j"]).stdout.starts_with("{\n\t\"instances\": [\n\t\t{\n\t\t\t\"instance\": \"three\","));
    assert_eq!(list(&["-j", "-l"]).stderr, "FATAL:   more than one flags have been set\n");
    if environment.user().uid.as_raw() != 0 {
        assert_eq!(list(&["-u", "root"]).stderr, "FATAL:   Only root user can list user's instances\n");
    }
    instance(&environment, &["stop", "-a"]);
}

#[test]
fn the_first_process_is_named_to_those_who_ask() {
    let environment = TestEnvironment::new();
    let file = environment.work().join("pid");

    let path = file.to_str().unwrap();
    let started = instance(&environment, &["start", "--pid-file", path, environment.images().sif(), "web"]);

    assert_eq!(started.code, 0, "{started}");
    assert_eq!(std::fs::read_to_string(file).unwrap(), format!("{}\n", first_process(&environment)));
    instance(&environment, &["stop", "web"]);
}

#[test]
fn an_instance_can_be_measured() {
    let environment = TestEnvironment::new();
    start(&environment, "web", &[]);

    let json: serde_json::Value =
        serde_json::from_str(&instance(&environment, &["stats", "--json", "web"]).stdout).unwrap();
    let text = instance(&environment, &["stats", "--no-stream", "web"]);

    // The init, the script and what that waits for.
    assert!((2..=3).contains(&json["pids_stats"]["current"].as_u64().unwrap()), "{json}");
    assert!(json["memory_stats"]["usage"]["usage"].as_u64().unwrap() > 0, "{json}");
    assert!(text.stdout.starts_with("INSTANCE NAME    CPU USAGE    MEM USAGE / LIMIT"), "{text}");
    assert!(text.stdout.lines().nth(1).unwrap().starts_with("web  "), "{text}");
    instance(&environment, &["stop", "web"]);
}

#[test]
fn nothing_is_left_of_an_instance_when_any_of_its_processes_is_killed() {
    as_user_and_as_root(|environment| {
        for victim in ["init", "keeper", "daemon"] {
            start(environment, "web", &["stubborn"]);
            let init = first_process(environment);
            let run = environment.siphon(&["exec", "instance://web", "sleep", "1000"]).spawn();
            let pid = match victim {
                "init" => init,
                "keeper" => parent(init),
                _ => {
                    let status = environment.siphon(&["status", "--json"]).stdout();
                    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
                    i32::try_from(status[0]["pid"].as_i64().unwrap()).unwrap()
                }
            };

            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();

            if victim == "daemon" {
                // Its programs live on without their files, and can be stopped.
                assert_eq!(names(environment), ["web"]);
                assert_eq!(instance(environment, &["stop", "-F", "web"]).code, 0);
            }
            let mut run = run;
            run.wait().unwrap();
            wait_until("the end", || names(environment).is_empty());
        }
        start(environment, "web", &[]);
        instance(environment, &["stop", "web"]);
    });
}

#[test]
fn of_many_starts_of_one_name_one_wins() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();

    let starts: Vec<_> = (0..8).map(|_| environment.siphon(&["instance", "start", image, "web"]).spawn()).collect();
    let codes: Vec<_> =
        starts.into_iter().map(|start| start.wait_with_output().unwrap().status.code().unwrap()).collect();

    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
    assert_eq!(names(&environment), ["web"]);
    instance(&environment, &["stop", "web"]);
}

#[test]
fn the_ids_of_an_instance_are_those_of_the_runs_in_it() {
    let environment = TestEnvironment::new();
    let image = environment.images().sif();
    // Changes of owners need other users, real or pretended.
    let line =
        "id -u; echo $HOME; touch /tmp/of-another; chown 42:42 /tmp/of-another && echo given; rm /tmp/of-another";

    for options in [&["--fakeroot"][..], &["--fakeroot", "--ignore-subuid"]] {
        let started = instance(&environment, &[&["start", "--contain"], options, &[image, "root"]].concat());
        assert_eq!(started.code, 0, "{started}");

        // The option of the run is of no importance.
        let inside = exec(&environment, "root", line);
        let again = environment.siphon(&["exec", "--fakeroot", "instance://root", "sh", "-c", line]).run();

        assert_eq!((inside.code, inside.stdout.as_str()), (0, "0\n/root\ngiven\n"), "{inside}");
        assert_eq!(again.stdout, inside.stdout, "{again}");
        instance(&environment, &["stop", "root"]);
    }
    start(&environment, "mine", &[]);
    let inside = environment.siphon(&["exec", "--fakeroot", "instance://mine", "id", "-u"]).run();
    assert_ne!(inside.stdout, "0\n", "{inside}");
    instance(&environment, &["stop", "mine"]);
}

#[test]
fn root_lists_and_stops_the_instances_of_a_user() {
    if !is_root() {
        return println!("needs root");
    }
    let (environment, root) = (TestEnvironment::new(), TestEnvironment::root());
    let (user, name) = (&environment.user().name, format!("of-a-user-{}", std::process::id()));
    let image = environment.images().sif();
    // Where root looks: in the user's own home.
    environment.shell(&format!("unset SIPHON_CONFIGDIR; siphon instance start {image} {name}")).stdout();
    let list = || root.siphon(&["instance", "list", "--user", user]).stdout();

    let before = list();
    let json = root.siphon(&["instance", "list", "--json", "--user", user, &name]).stdout();
    let refused = environment.siphon(&["instance", "stop", "--user", "root", &name]).run();
    let unknown = root.siphon(&["instance", "list", "--user", "no-such-user"]).run();
    root.siphon(&["instance", "stop", "--user", user, &name]).stdout();

    // Logs outlive an instance, and these lie in the user's own home, perhaps beside those of others.
    let clean = format!(
        "cd ~{user} && cd .local/state/siphon/instances/*/ && rm logs/{name}.err logs/{name}.out && if rmdir logs; then rm lock; fi && \
         cd ~{user} && rmdir -p --ignore-fail-on-non-empty .local/state/siphon/instances/*"
    );
    environment.shell(&clean).stdout();

    assert!(before.lines().any(|line| line.starts_with(&format!("{name} ")) && line.contains(image)), "{before}");
    assert!(json.contains(&name), "{json}");
    assert!(refused.stderr.contains("Only root user can stop user's instances"), "{refused}");
    assert!(unknown.stderr.contains("no-such-user"), "{unknown}");
    assert!(!list().contains(&name));
}
