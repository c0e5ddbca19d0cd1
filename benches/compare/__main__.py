"""Compares siphon with other ways to the content of an image, as whole processes. `make bench` calls it.

All peers take their turn within each round (A B C, A B C, ...), so that a change of the machine hits all alike, and the
median of the rounds counts. What a peer cannot do is told, never counted.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True

import machine
import peers as programs
import works
from images import Image, make_million, make_sample
from machine import Failure
from table import Figures

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = [work.name for work in (*works.ORDINARY, works.Million)]


class Interrupted(BaseException):
    """A signal asked for the end. Not an Exception: no peer has failed."""


def arguments():
    """The command line. Where an option is not given, the variable of its name counts."""
    default = os.environ.get
    parser = argparse.ArgumentParser(prog="compare", description=__doc__.split("\n")[0])
    parser.add_argument("work", nargs="*", help=f"what to measure ($WORK; all of {' '.join(NAMES)})")
    parser.add_argument("--image", type=Path, default=default("IMAGE") or None, help="SIF or squashfs; made if absent")
    parser.add_argument("--tree", type=Path, default=default("TREE") or None, help="the same, unpacked in a directory")
    parser.add_argument("--runs", type=int, default=default("RUNS") or 5, help="rounds of each work (%(default)s)")
    parser.add_argument("--json", type=Path, default=default("JSON") or None, help="a file for the raw figures")
    parser.add_argument("--siphon", type=Path, default=default("SIPHON") or None, help="else the release build")
    args = parser.parse_args()
    args.work = args.work or shlex.split(default("WORK", "")) or NAMES
    for name in set(args.work) - set(NAMES):
        parser.error(f"there is no work {name}; there are: {' '.join(NAMES)}")
    if args.runs < 1:
        parser.error("at least one run is needed")
    target = Path(default("CARGO_TARGET_DIR") or REPOSITORY / "target")
    args.siphon = args.siphon or target / "release" / "siphon"
    return args


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def compare(work, peers, runs, figures):
    """Measures one work with all peers in turn."""
    try:
        if work.needs_root and not machine.IS_ROOT:
            raise Failure("needs root, to drop caches")
        work.prepare()
    except Failure as failure:
        figures.fail(work.name, "all", str(failure))
        return
    for turn in range(1 if work.once else runs):
        for peer in peers:
            if not work.applies(peer) or (work.name, peer.name) in figures.failures:
                continue
            say(f"{work.name}, round {turn + 1}: {peer.name}")
            try:
                for row, value in work.measure(peer):
                    figures.add(row, peer.name, value)
                peer.release()
            except Failure as failure:
                say(f"failed: {failure}")
                figures.fail(work.name, peer.name, str(failure))
                release([peer])


def release(peers):
    """Leaves nothing of the peers behind, whatever happened."""
    for peer in peers:
        try:
            peer.release()
        except Failure as failure:
            say(f"{peer.name}: {failure}")


class Bench:
    """A scratch directory, and the peers at work in it. All of it is gone when the block is left."""

    def __enter__(self):
        self.scratch = Path(tempfile.mkdtemp(prefix="siphon-bench.", dir="/var/tmp"))
        self.scratch.chmod(0o755)
        self.peers = []
        if machine.IS_ROOT:
            shutil.chown(self.scratch, machine.ACCOUNT)
        (self.scratch / "empty").mkdir()
        return self

    def __exit__(self, *_):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        release(self.peers)
        if any(machine.mount_source(peer.root) for peer in self.peers):
            say(f"{self.scratch} is left behind: something is still mounted there")
        else:
            shutil.rmtree(self.scratch)

    def find_peers(self, name, path, args, tree):
        """The image at `path` and who can serve it, in a directory of their own."""
        directory = self.scratch / name
        machine.run(machine.as_user(["mkdir", str(directory)]))
        image = Image(path)
        peers, missing = programs.find_peers(image, directory, args.siphon, tree)
        self.peers += peers
        return image, peers, missing

    def ordinary(self, args, chosen, figures):
        """All works on the image that was given, or on a sample; returns what can be said of the comparison."""
        path = args.image and args.image.resolve()
        if not path:
            say("making an image of this machine's programs, libraries and documentation")
            path = self.scratch / "sample.sqfs"
            make_sample(path)
        image, peers, missing = self.find_peers("peers", path, args, args.tree and args.tree.resolve())
        for line in missing:
            say(line)
        peers[0].mount()
        image.survey(peers[0].root)
        peers[0].release()
        for work in chosen:
            compare(work(image, self.scratch / "empty"), peers, args.runs, figures)
        return describe(image)

    def million(self, args, figures):
        """The work that has its own image."""
        say("making an image of a million files")
        path = self.scratch / "million.sqfs"
        make_million(path)
        image, peers, _ = self.find_peers("million", path, args, None)
        compare(works.Million(image, self.scratch / "empty"), peers, args.runs, figures)


def describe(image):
    """The image and what the works took of it."""
    words = [f"image: {image.path}, {image.path.stat().st_size >> 20} MiB"]
    words += [f"tar: {image.top}", f"tars: {' '.join(image.halves)}", f"fio: {len(image.big_files)} files"]
    return words + [f"import: {' '.join(image.program)}"]


def commit():
    """What was built, if the repository can tell."""
    try:
        return machine.run(["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]).strip()
    except Failure:
        return "unknown"


def memory_gib():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30


def interrupted(number, _):
    """Ends the comparison where it is; what is left of it is undone on the way out."""
    raise Interrupted(signal.Signals(number).name)


def main():
    args = arguments()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    cores = len(os.sched_getaffinity(0))
    about = [
        f"siphon {commit()}; {cores} cores, {memory_gib()} GiB, Linux {platform.release()}; medians of {args.runs}"
    ]
    figures = Figures()
    with Bench() as bench:
        chosen = [work for work in works.ORDINARY if work.name in args.work]
        if chosen:
            about += bench.ordinary(args, chosen, figures)
        if works.Million.name in args.work:
            bench.million(args, figures)
        peers = list(dict.fromkeys(peer.name for peer in bench.peers))
    if args.json:
        args.json.write_text(json.dumps({"about": about, "runs": args.runs, **figures.raw()}, indent=1) + "\n")
    print("\n".join([*about, "", *figures.table(peers)]))


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"bench: {failure}")
    except Interrupted as name:
        sys.exit(f"bench: ended by {name}")
