"""What is measured. A work takes a peer from its first state to an end, and yields figures on the way."""

import json
from dataclasses import dataclass

import machine
from machine import Failure

MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """One line of the table. More is better for rates, less for everything else."""

    work: str
    case: str
    unit: str

    @property
    def more_is_better(self):
        return self.unit == "IOPS"


class Work:
    """What all works share: `once` is for what varies little between runs and takes long."""

    name = None
    once = False
    needs_root = False  # because it is about cold caches

    def __init__(self, image, empty):
        self.image = image
        self.empty = empty  # a directory without content, to warm programs up with
        self.seen = None  # what the first peer delivered: the others must deliver the same

    def prepare(self):
        """Looks whether the image has what is needed, and installs what is missing here."""

    def applies(self, peer):
        """Whether the peer can do this at all."""
        return peer.has_root

    def measure(self, peer):
        """Does the work once with `peer`, and yields pairs of a row and its figure."""
        raise NotImplementedError

    def start(self, peer, mounted=True):
        """Leaves nothing of the image in memory, as far as this user can, and mounts it anew."""
        peer.release()
        if machine.IS_ROOT:
            machine.drop_caches()
        if mounted:
            peer.mount()

    def cases(self):
        """A first time that counts as cold, and a second one. Without root the first one is neither cold nor warm."""
        return (("cold", machine.IS_ROOT), ("warm", True))

    def row(self, case, unit):
        return Row(self.name, case, unit)

    def check(self, peer, delivered):
        """Fails the peer if it delivers something else than the first one did."""
        self.seen = self.seen or (peer.name, delivered)
        name, expected = self.seen
        if delivered != expected:
            raise Failure(f"delivered {delivered} where {name} delivered {expected}")


class Pipeline(Work):
    """A shell pipeline over the content that prints how much it got: cold, and once more on the same mount."""

    script = None

    def places(self, root):
        """The arguments of the script."""
        return [root]

    def run_on(self, places):
        """Runs the script; returns the seconds that it took, and the numbers that it printed."""
        seconds, printed = machine.timed(machine.pipeline(self.script, *places))
        return seconds, sorted(int(word) for word in printed.split())

    def measure(self, peer):
        self.start(peer)
        places = self.places(peer.root)
        # Over nothing first, so that it is the content that is cold and not the programs.
        self.run_on([self.empty] * len(places))
        for case, counts in self.cases():
            seconds, delivered = self.run_on(places)
            self.check(peer, delivered)
            if counts:
                yield self.row(case, "s"), seconds


class Tar(Pipeline):
    """Every byte, in the order of the directories. To a pipe: tar does not read where its output is /dev/null."""

    name = "tar"
    script = 'tar -C "$1" -cf - . | wc -c'

    def places(self, root):
        return [root / self.image.top]


class Tars(Pipeline):
    """Two of them side by side, in two big directories."""

    name = "tars"
    script = 'tar -C "$1" -cf - . | wc -c & first=$!; tar -C "$2" -cf - . | wc -c && wait "$first"'

    def prepare(self):
        if not self.image.halves:
            raise Failure("the image has no two directories with files")

    def places(self, root):
        return [root / half for half in self.image.halves]


class Find(Pipeline):
    """Every name and its attributes, no content."""

    name = "find"
    script = 'find "$1" -xdev -ls | wc -l'


class Import(Work):
    """A program of the image that reads many files when it starts: cold, and the same again."""

    name = "import"

    def prepare(self):
        if not self.image.program:
            raise Failure("the image has no python3")

    def applies(self, peer):
        return True

    def measure(self, peer):
        # Where a user starts the program with one command, its mount is part of what is waited for.
        self.start(peer, mounted=not peer.runs_unmounted)
        machine.run(machine.as_user(["unshare", "--map-root-user", "chroot", "/", "mount", "--version"]))
        for case, counts in self.cases():
            seconds, _ = machine.timed(peer.program(self.image.program))
            if counts:
                yield self.row(case, "s"), seconds


class Traffic(Import):
    """What the same program, started cold in a mount that is there already, makes the peer read of the image."""

    name = "traffic"
    once = True
    needs_root = True

    def applies(self, peer):
        return peer.mounts

    def measure(self, peer):
        self.start(peer)
        reads, size_bytes = peer.traffic(lambda: machine.run(peer.program(self.image.program)))
        yield self.row("import, cold", "reads"), reads
        yield self.row("import, cold", "MiB"), size_bytes / MIB


class Fio(Work):
    """Random reads in big files for a fixed time from cold caches: the same files and offsets for each peer."""

    name = "fio"
    needs_root = True
    seconds = 5
    sizes = ("4k", "128k")
    jobs = (1, 4, 16)

    def prepare(self):
        machine.require("fio", "fio")
        if not self.image.big_files:
            raise Failure("the image has no file of 1 MiB or more")

    def measure(self, peer):
        files = ":".join(str(name).replace(":", "\\:") for name in self.image.big_files)
        for size in self.sizes:
            for jobs in self.jobs:
                self.start(peer)
                machine.run(["fio", "--version"])
                yield self.row(f"{size}, {jobs} jobs, cold", "IOPS"), self.reads_a_second(peer.root, files, size, jobs)

    def reads_a_second(self, root, files, size, jobs):
        """Runs fio through the page cache, which is what programs do."""
        words = [
            "fio", "--name=random", "--thread", "--group_reporting", "--output-format=json", "--readonly",
            "--ioengine=psync", "--direct=0", "--invalidate=0", "--fadvise_hint=0", "--rw=randread", "--norandommap",
            "--file_service_type=random", "--randseed=1", "--time_based", f"--runtime={self.seconds}",
            f"--bs={size}", f"--numjobs={jobs}", f"--directory={root}", f"--filename={files}",
        ]
        printed = machine.run(machine.as_user(words, reads_everything=True))
        (job,) = json.loads(printed[printed.index("{") :])["jobs"]
        return job["read"]["iops"]


TIMED_MOUNT = """
import os, subprocess, sys, time
start = time.monotonic()
subprocess.run(sys.argv[2:], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
os.stat(sys.argv[1])
print(time.monotonic() - start)
"""


class Mount(Work):
    """From the command to the first answer of `stat`."""

    name = "mount"

    def applies(self, peer):
        return peer.mounts

    def measure(self, peer):
        self.start(peer, mounted=False)
        machine.run(machine.as_user(["stat", str(self.empty)]))
        for case, counts in self.cases():
            milliseconds = mount_milliseconds(peer)
            peer.release()
            if counts:
                yield self.row(case, "ms"), milliseconds


class Memory(Work):
    """What the daemon holds when one mount has served all the other works."""

    name = "memory"
    once = True

    def applies(self, peer):
        return peer.daemon_text

    def measure(self, peer):
        self.start(peer)
        for work in (Tar, Tars, Find) if self.image.halves else (Tar, Find):
            pipeline = work(self.image, self.empty)
            pipeline.run_on(pipeline.places(peer.root))
        if self.image.program:
            machine.run(peer.program(self.image.program))
        yield from self.held(peer)

    def held(self, peer):
        """One row for each kind of memory."""
        for kind, size_mib in machine.memory_mib(peer.daemon()).items():
            yield self.row(kind, "MiB"), size_mib


class Million(Memory):
    """Mount, `find` and the daemon's memory with an image of a million files, half of them empty, the rest tiny."""

    name = "million"

    def applies(self, peer):
        return peer.mounts

    def measure(self, peer):
        find = Find(self.image, self.empty)
        self.start(peer, mounted=False)
        find.run_on([self.empty])
        milliseconds = mount_milliseconds(peer)
        if machine.IS_ROOT:
            yield self.row("mount, cold", "ms"), milliseconds
        for case, counts in self.cases():
            seconds, delivered = find.run_on([peer.root])
            self.check(peer, delivered)
            if counts:
                yield self.row(f"find, {case}", "s"), seconds
        if peer.daemon_text:
            yield from self.held(peer)


def mount_milliseconds(peer):
    """How long it takes from the start of the mount to the first answer, for a program of the one who mounts."""
    words = [machine.python(), "-c", TIMED_MOUNT, str(peer.root), *peer.mount_command()]
    return 1000 * float(machine.run(peer.started(words), patient=True))


ORDINARY = (Mount, Tar, Tars, Find, Import, Traffic, Fio, Memory)
