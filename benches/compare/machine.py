"""This machine: programs that are run and timed, the page cache, processes and their memory.

As root, what is measured runs as the unprivileged account of tests/setup, since that is what counts. Every program gets
a session of its own: an interrupt reaches this program alone, which then ends what it started.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ACCOUNT = "siphon-test"
IS_ROOT = os.geteuid() == 0
# Longer than any work takes; a peer that hangs fails.
TIMEOUT_SECONDS = 1800
# How long a busy mount is waited for, and a daemon that was told to leave.
PATIENCE_SECONDS = 10


class Failure(Exception):
    """Something could not be done. The message says what, and why."""


def run(command, patient=False, environment=None):
    """Runs `command` to its end and returns what it printed.

    An interrupt kills it and all that it started. Only a `patient` one is awaited: half a mount cannot be undone.
    Raises Failure if it cannot be started, fails or takes too long.
    """
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace",
            env=environment, start_new_session=True,
        )
    except OSError as error:
        raise Failure(f"cannot run {command[0]}: {error.strerror}") from error
    try:
        printed, complaints = process.communicate(timeout=TIMEOUT_SECONDS)
    except BaseException as reason:
        timed_out = isinstance(reason, subprocess.TimeoutExpired)
        if timed_out or not patient:
            kill_session(process.pid)
        process.wait()
        if timed_out:
            raise Failure(f"took longer than {TIMEOUT_SECONDS} s") from reason
        raise
    if process.returncode:
        said = complaints.strip().splitlines() or ["nothing said"]
        raise Failure(f"exit code {process.returncode}: {said[-1]}")
    return printed


def kill_session(session):
    """Kills all processes of a session, whatever process groups they made for themselves."""
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # It may have been quicker.
            # state, parent, process group, session: what follows the name, which may hold anything, in parentheses.
            if int((directory / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                os.kill(int(directory.name), signal.SIGKILL)


def timed(command, **options):
    """Runs `command` as `run` does; returns how many seconds it took, and what it printed."""
    start = time.monotonic()
    printed = run(command, **options)
    return time.monotonic() - start, printed


def as_user(command, reads_everything=False):
    """`command` as the account that is measured; with the right to read every file, where files of root are read."""
    if not IS_ROOT:
        return command
    rights = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"] if reads_everything else []
    return ["setpriv", f"--reuid={ACCOUNT}", f"--regid={ACCOUNT}", "--init-groups", *rights, "--", *command]


def python():
    """A Python that the account can run, in a namespace of its own too: root's may be in root's home."""
    return "/usr/bin/python3" if IS_ROOT else sys.executable


def pipeline(script, *arguments, reads_everything=True):
    """A command for a shell pipeline that fails if any part of it does; `arguments` are $1 and so on."""
    shell = ["bash", "-o", "pipefail", "-c", script, "bench", *map(str, arguments)]
    return as_user(shell, reads_everything=reads_everything)


def drop_caches():
    """Empties the page cache, so that what is read next comes from storage. Needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def find_processes(text):
    """The ids of processes that have `text` in their command line, without this one."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes()
        except OSError:
            continue  # It has just ended, or is not ours to look at.
        if text.encode() in words and int(directory.name) != os.getpid():
            found.append(int(directory.name))
    return found


def end_processes(text):
    """Tells the processes that have `text` in their command line to leave, kills those that stay."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    told = set()
    while pids := find_processes(text):
        late = time.monotonic() > deadline
        for pid in pids if late else set(pids) - told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        told.update(pids)
        time.sleep(0.01)


def memory_mib(pid):
    """The memory of a process in MiB, by the names that /proc/PID/status has for it."""
    status = Path(f"/proc/{pid}/status").read_text()
    kinds = ("VmHWM", "VmRSS", "RssAnon")
    return {kind: int(re.search(rf"^{kind}:\s+(\d+) kB", status, re.M)[1]) / 1024 for kind in kinds}


def mount_source(directory):
    """What is mounted on `directory`, as the kernel names it; None if nothing is."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[4] == str(directory):
            return words[words.index("-") + 2]
    return None


def unmount(directory, command):
    """Unmounts `directory` with `command`, and if it stays busy detaches it, which is a Failure too."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while mount_source(directory):
        try:
            run(command, patient=True)
        except Failure as failure:
            if time.monotonic() > deadline:
                detach = ["umount", "-l"] if IS_ROOT else ["fusermount3", "-uz"]
                run([*detach, str(directory)], patient=True)
                raise Failure(f"cannot unmount: {failure}") from failure
            time.sleep(0.1)


def require(program, package):
    """Sees to it that `program` is there: root installs the Debian `package`."""
    if shutil.which(program):
        return
    if not IS_ROOT:
        raise Failure(f"there is no {program} here (package {package})")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-qq"], environment=quiet)
    run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package], environment=quiet)
