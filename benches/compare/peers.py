"""What is compared: each peer gives the content of one image, as a mounted directory, by running programs, or both."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import machine
from machine import Failure


class Peer:
    """What a work sees of a program. `root` is the directory with the content, if the peer has one."""

    name = None
    has_root = True  # whether there is a directory with the content
    mounts = True  # whether `mount` has the image read, rather than what was unpacked from it
    runs_unmounted = False  # whether `program` mounts by itself
    daemon_text = None  # what the command line of its daemon contains, if it has one

    def __init__(self, image, scratch):
        self.image = image
        self.scratch = scratch
        self.root = scratch / self.name
        machine.run(machine.as_user(["mkdir", str(self.root)]))

    def mount(self):
        """Makes `root` show the content."""
        if command := self.mount_command():
            machine.run(self.started(command), patient=True)

    def mount_command(self):
        """The words that do so, if there is anything to do."""
        return []

    def started(self, words):
        """`words` as whoever mounts runs them."""
        return machine.as_user(words)

    def release(self):
        """Ends all that the peer has running, so that its next use is a first one."""

    def program(self, words):
        """The command that runs the program `words` of the image. In a mount: with another root, and devices in it."""
        script = 'mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"'
        return machine.as_user(["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(self.root), *words])

    def daemon(self):
        """The process id of the daemon that serves the content."""
        pids = machine.find_processes(self.daemon_text)
        if len(pids) != 1:
            raise Failure(f"{len(pids)} daemons where one was expected")
        return pids[0]

    def traffic(self, action):
        """Runs `action`, and returns how many reads of the image it caused and how many bytes those were."""
        reads_before, bytes_before = self.storage()
        action()
        reads, size_bytes = self.storage()
        return reads - reads_before, size_bytes - bytes_before

    def storage(self):
        """The reads of the image since it was mounted, and their bytes."""
        raise Failure("there is no count of what it reads")


class Siphon(Peer):
    """This project's own program, in a copy: a build in the meantime changes nothing."""

    name = "siphon"
    runs_unmounted = True

    def __init__(self, image, scratch, binary):
        super().__init__(image, scratch)
        self.binary = scratch / "bin" / "siphon"
        self.binary.parent.mkdir()
        shutil.copy(binary, self.binary)
        state = scratch / "run"
        machine.run(machine.as_user(["mkdir", "-m", "700", str(state)]))
        self.daemon_text = str(state)
        self.settings = [f"SIPHON_RUNTIME_DIR={state}", f"SIPHON_CACHEDIR={scratch}/cache"]
        self.command = [str(self.binary), "--quiet"]

    def mount_command(self):
        return [*self.command, "mount", str(self.image.path), str(self.root)]

    def started(self, words):
        return machine.as_user(["env", *self.settings, *words])

    def release(self):
        machine.unmount(self.root, self.started([*self.command, "umount", str(self.root)]))
        machine.end_processes(self.daemon_text)

    def program(self, words):
        """Through a mount if there is one, as others do it; else by `siphon exec`, which is what users type."""
        if machine.mount_source(self.root):
            return super().program(words)
        return self.started([*self.command, "exec", str(self.image.path), *words])

    def storage(self):
        status = machine.run(self.started([*self.command, "status", "--json"]))
        (daemon,) = json.loads(status)
        try:
            return daemon["counters"]["storage_reads"], daemon["counters"]["storage_bytes"]
        except KeyError as error:
            raise Failure(f"siphon status --json does not tell {error}") from error


class Kernel(Peer):
    """The kernel's squashfs on a loop device."""

    name = "kernel"

    def mount_command(self):
        options = f"loop,ro,offset={self.image.offset_bytes}"
        return ["mount", "-t", "squashfs", "-o", options, str(self.image.path), str(self.root)]

    def started(self, words):
        return words

    def release(self):
        machine.unmount(self.root, ["umount", str(self.root)])

    def storage(self):
        """Documentation/block/stat.rst: reads completed, and sectors of 512 bytes."""
        device = Path(machine.mount_source(self.root)).name
        fields = Path(f"/sys/block/{device}/stat").read_text().split()
        return int(fields[0]), int(fields[2]) * 512


class Squashfuse(Peer):
    """squashfuse_ll, by the unprivileged account too. Its command may have several words: a loader, and its options."""

    name = "squashfuse_ll"

    def __init__(self, image, scratch, command):
        super().__init__(image, scratch)
        self.command = command
        self.daemon_text = str(self.root)

    def mount_command(self):
        return [*self.command, "-o", f"offset={self.image.offset_bytes}", str(self.image.path), str(self.root)]

    def release(self):
        machine.unmount(self.root, machine.as_user(["fusermount3", "-u", str(self.root)]))
        machine.end_processes(self.daemon_text)

    def traffic(self, action):
        """By strace, which makes it slow; so it is not timed."""
        machine.require("strace", "strace")
        trace = self.scratch / "strace"
        words = ["strace", "-f", "-s", "0", "-e", "trace=pread64", "-o", str(trace), "-p", str(self.daemon())]
        strace = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            said = strace.stderr.readline()
            if "attached" not in said:
                raise Failure(said.strip() or "strace ended at once")
            action()
        finally:
            strace.send_signal(signal.SIGINT)
            strace.communicate()
        sizes = [int(size) for size in re.findall(r"pread64.*= (\d+)$", trace.read_text(), re.M)]
        return len(sizes), sum(sizes)


class Plain(Peer):
    """The unpacked tree."""

    name = "plain"
    mounts = False

    def __init__(self, image, scratch, tree):
        super().__init__(image, scratch)
        self.root = tree


class Apptainer(Peer):
    """apptainer, which only runs programs. `path` is the image as the command sees it, perhaps in another root."""

    name = "apptainer"
    has_root = False
    mounts = False
    runs_unmounted = True

    def __init__(self, image, scratch, command, path):
        super().__init__(image, scratch)
        self.command = command
        self.path = path

    def program(self, words):
        return [*self.command, "exec", self.path, *words]


def find_peers(image, scratch, binary, tree):
    """All peers that can be had here, siphon first, and a line for each that is left out and why."""
    peers, missing = [Siphon(image, scratch, binary)], []
    if machine.IS_ROOT:
        peers.append(Kernel(image, scratch))
    else:
        missing.append("no kernel mount and no cold runs: they need root")
    squashfuse = shlex.split(os.environ.get("SQUASHFUSE_LL") or "squashfuse_ll")
    if shutil.which(squashfuse[0]):
        peers.append(Squashfuse(image, scratch, squashfuse))
    else:
        missing.append(f"no {squashfuse[0]} here; SQUASHFUSE_LL names the command")
    if tree:
        peers.append(Plain(image, scratch, tree))
    else:
        missing.append("no plain tree; TREE names the image's content, unpacked")
    apptainer = shlex.split(os.environ.get("APPTAINER", "")) or machine.as_user(["apptainer"])
    if shutil.which("apptainer") or "APPTAINER" in os.environ:
        peers.append(Apptainer(image, scratch, apptainer, os.environ.get("APPTAINER_IMAGE") or str(image.path)))
    else:
        missing.append("no apptainer here; APPTAINER names the command, APPTAINER_IMAGE the image as it sees it")
    return peers, missing
