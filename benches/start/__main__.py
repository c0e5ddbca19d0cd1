"""How long a program takes to start: `python3 benches/start IMAGE [RUNS]`.

Whole processes, from posix_spawn to their end, of `siphon exec IMAGE /bin/true`:

    warm    the daemon runs                              RUNS times (200)
    first   no daemon runs, what it reads is in memory   a tenth as often
    many    32 at once, without a daemon before          five times; the time until the last one has ended

SIPHON names the binary (target/release/siphon). Started by root, it goes on as the user in ACCOUNT (siphon-test).
"""

import os
import pwd
import statistics
import subprocess
import sys
import tempfile
import time

AT_ONCE = 32


def become(account):
    user = pwd.getpwnam(account)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ.update(HOME=user.pw_dir, USER=account)


def spawn(siphon, image):
    return os.posix_spawn(siphon, [siphon, "exec", image, "/bin/true"], os.environ)


def wait(pid):
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit(f"a run ended with {status}")


def milliseconds(action):
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1000


def daemons(directory):
    found = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if f"daemon --state {directory}" in line]


def stop(directory):
    for pid in daemons(directory):
        os.kill(pid, 15)
    while daemons(directory):
        time.sleep(0.01)


def row(name, times):
    quantiles = statistics.quantiles(times, n=10) if len(times) > 1 else times * 9
    print(f"{name:8} {statistics.median(times):8.1f} {min(times):8.1f} {quantiles[8]:8.1f} {len(times):6}")


def main():
    image = os.path.realpath(sys.argv[1])
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    siphon = os.path.realpath(os.environ.get("SIPHON", "target/release/siphon"))
    if os.geteuid() == 0:
        become(os.environ.get("ACCOUNT", "siphon-test"))
    os.chdir("/")
    with tempfile.TemporaryDirectory() as directory:
        os.environ.update(SIPHON_RUNTIME_DIR=directory, SIPHON_CACHEDIR=directory)
        once = lambda: wait(spawn(siphon, image))
        once()
        print(f"{'ms':8} {'median':>8} {'least':>8} {'9 of 10':>8} {'runs':>6}")
        row("warm", [milliseconds(once) for _ in range(runs)])
        first = []
        for _ in range(max(runs // 10, 2)):
            stop(directory)
            first.append(milliseconds(once))
        row("first", first)
        many = []
        for _ in range(5):
            stop(directory)
            many.append(milliseconds(lambda: [wait(pid) for pid in [spawn(siphon, image) for _ in range(AT_ONCE)]]))
            if len(daemons(directory)) != 1:
                sys.exit(f"there are {len(daemons(directory))} daemons")
        row(f"{AT_ONCE}", many)
        stop(directory)


if __name__ == "__main__":
    main()
