use crate::support::environment::TestEnvironment;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Runs that are killed; `SIPHON_KILL_ROUNDS` makes it more.
const ROUNDS: u64 = 30;
/// What has started after so long has started: kills come anywhere before, and a little after.
const LONGEST_DELAY: Duration = Duration::from_millis(120);
/// Longer than a start takes on a loaded machine, and shorter than any wait for a lock that nobody gives back.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The same numbers for the same seed (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn of<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A process of the environment that `victim` means, if there is one by now.
fn find(environment: &TestEnvironment, victim: &str, client: i32, random: &mut Random) -> Option<i32> {
    let processes = environment.processes();
    let is_daemon = |line: &str| line.contains(" daemon --state ");
    let fitting: Vec<i32> = match victim {
        "client" => vec![client],
        "daemon" => processes.iter().filter(|(_, line)| is_daemon(line)).map(|(pid, _)| *pid).collect(),
        _ => processes.iter().filter(|(pid, line)| **pid != client && !is_daemon(line)).map(|(pid, _)| *pid).collect(),
    };
    let count = fitting.len() as u64;
    (count > 0).then(|| fitting[usize::try_from(random.below(count)).unwrap()])
}

/// Stops instances until there are none, nor any that is still being started by nobody.
fn end_instances(environment: &TestEnvironment) {
    let deadline = Instant::now() + START_LIMIT;
    while environment.processes().values().any(|line| line.contains(" instance start ")) {
        assert!(Instant::now() < deadline, "{:?}", environment.processes());
        environment.siphon(&["instance", "stop", "-F", "-a"]).run();
    }
    let list = environment.siphon(&["instance", "list"]).stdout();
    assert_eq!(list.lines().count(), 1, "{list}");
}

/// Writes to the sandbox: at once, or when the last program is gone that a killed daemon left in it.
fn write_again(environment: &TestEnvironment) {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let write = environment.siphon(&["exec", "--writable", "box", "sh", "-c", "echo x > /data/x"]).run();
        if write.code == 0 {
            return;
        }
        let is_left = write.stderr.contains("which is left of a run whose daemon was killed");
        assert!(is_left && Instant::now() < deadline, "{write}");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn kills_at_random_moments_leave_nothing_and_block_no_start() {
    let seed = number("SIPHON_KILL_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
    let rounds = number("SIPHON_KILL_ROUNDS").unwrap_or(ROUNDS);
    println!("SIPHON_KILL_SEED={seed} SIPHON_KILL_ROUNDS={rounds}");
    let mut random = Random(seed);
    let environment = TestEnvironment::new();
    let image = environment.images().sif();
    environment.siphon(&["build", "--sandbox", "box", image]).stdout();
    let reading = "while :; do md5sum /data/payload; done";
    // A program that was put into the background would outlive its run, as it may.
    let waiting = "exec sleep 1000";
    for round in 0..rounds {
        let line = random.of(&[reading, waiting]);
        let runs: [&[&str]; 5] = [
            &["exec", image, "sh", "-c", line],
            &["exec", "--pid", image, "sh", "-c", line],
            &["exec", "--writable-tmpfs", image, "sh", "-c", line],
            &["exec", "--writable", "box", "sh", "-c", line],
            &["instance", "start", image, "victim"],
        ];
        let run = random.of(&runs);
        let victim = random.of(&["client", "daemon", "another"]);
        let delay = Duration::from_micros(random.below(LONGEST_DELAY.as_micros().try_into().unwrap()));
        println!("round {round}: {victim} of {run:?} after {delay:?}");

        let mut child = environment.siphon(run).spawn();
        sleep(delay);
        let client = i32::try_from(child.id()).unwrap();
        if let Some(pid) = find(&environment, victim, client, &mut random) {
            // It may have ended by itself meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }

        let began = Instant::now();
        let next = environment.siphon(&["exec", image, "cat", "/data/greeting"]).stdout();
        assert_eq!(next, "hello from the image");
        assert!(began.elapsed() < START_LIMIT, "a start took {:?}", began.elapsed());
        // What was not the victim goes on, and is ended as a user would.
        let _ = child.kill();
        child.wait().unwrap();
        end_instances(&environment);
        write_again(&environment);
    }
    // What killed ones left is taken away when a daemon starts or leaves; this one leaves when all of them are gone.
    environment.siphon(&["exec", image, "true"]).stdout();
    // That no process, mount or state is left is asserted where the environment goes.
}
