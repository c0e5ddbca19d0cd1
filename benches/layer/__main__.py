"""Compares what writes to a layer cost: by both engines of siphon, by others, and on the disk itself. `make bench` calls it.

All systems take their turn within each round, each with a new layer, and the median of the rounds counts.
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
from statistics import median

sys.dont_write_bytecode = True
REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "benches" / "compare"))

import machine
import systems as mergers
from machine import Failure
from table import markdown

# What a work name stands for: rows, and what the worker is told. `cold` empties the caches first, `-` is not timed.
WORKS = {
    "files": [("create", "create"), ("stat, warm", "stat"), ("stat, cold", "cold stat"), ("delete", "delete")],
    "untar": [("untar", "untar")],
    "pip": [("pip install", "pip")],
    "big": [("write 1 GiB, fsync", "write"), ("read it, cold", "cold read")],
    "append": [("append to 485 MiB", "cold append")],
}
LARGE_MIB = 485
# What each engine is held against, and in which rows it is another one.
RIVALS = {"siphon fuse": "fuse-overlayfs", "siphon kernel": "kernel overlayfs"}
AGAINST_DISK = "read it, cold"


class Interrupted(BaseException):
    """A signal asked for the end."""


def arguments():
    """The command line. Where an option is not given, the variable of its name counts."""
    default = os.environ.get
    parser = argparse.ArgumentParser(prog="layer", description=__doc__.split("\n")[0])
    parser.add_argument("work", nargs="*", help=f"what to measure ($WORK; all of {' '.join(WORKS)})")
    parser.add_argument("--runs", type=int, default=default("RUNS") or 5, help="rounds of each work (%(default)s)")
    parser.add_argument("--json", type=Path, default=default("LAYER_JSON") or None, help="a file for the raw figures")
    parser.add_argument("--siphon", type=Path, default=default("SIPHON") or None, help="else the release build")
    parser.add_argument("--wheels", type=Path, default=default("WHEELS") or None, help="numpy and pandas; else fetched")
    parser.add_argument("--scratch", type=Path, default=default("SCRATCH") or "/var/tmp",
                        help="where the layers are made (%(default)s): an ext4 without a journal takes long to make a file for a "
                             "minute after many were deleted")
    parser.add_argument("--systems", default=default("SYSTEMS") or "", help="comma-separated; all if not given")
    args = parser.parse_args()
    args.work = args.work or shlex.split(default("WORK", "")) or list(WORKS)
    for name in set(args.work) - set(WORKS):
        parser.error(f"there is no work {name}; there are: {' '.join(WORKS)}")
    target = Path(default("CARGO_TARGET_DIR") or REPOSITORY / "target")
    args.siphon = args.siphon or target / "release" / "siphon"
    return args


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def make_inputs(directory, args):
    """What the works read: an archive, wheels, and the image below the layers."""
    shutil.copy(mergers.WORKER, directory)
    if "untar" in args.work:
        say("making an archive of 10,000 files")
        script = 'mkdir "$1/files" && cd "$1/files" && head -c 102400000 /dev/urandom | split -b 10240 -a 4 - ' \
                 '&& tar -C "$1" -cf "$1/files.tar" files && rm -r "$1/files"'
        machine.run(machine.pipeline(script, directory))
    if "pip" in args.work:
        wheels = directory / "wheels"
        if args.wheels:
            shutil.copytree(args.wheels, wheels)
        else:
            say("fetching numpy and pandas")
            quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
            machine.run([sys.executable, "-m", "pip", "download", *quiet, "--dest", str(wheels), "numpy", "pandas"])
        machine.run(["chmod", "-R", "a+rX", str(wheels)])
    say("making an image with a large file")
    machine.require("mksquashfs", "squashfs-tools")
    tree = directory / "tree"
    script = f'mkdir -p "$1/etc" && head -c {LARGE_MIB}M /dev/urandom >"$1/large"'
    machine.run(machine.pipeline(script, tree))
    # It is run once, to have the sandbox mounted.
    busybox = shutil.which("busybox") or "/bin/busybox"
    shutil.copy(busybox, tree / "true")
    (tree / "true").chmod(0o755)
    image = directory / "image.sqfs"
    machine.run(machine.as_user(
        ["mksquashfs", str(tree), str(image), "-quiet", "-no-progress", "-comp", "zstd", "-Xcompression-level", "1"]
    ))
    shutil.rmtree(tree)
    return image


def measure(system, works, inputs):
    """One round of one system: pairs of a row and its seconds."""
    with system.worker(inputs) as work:
        # What others still have to write is not this one's to wait for.
        os.sync()
        for name in works:
            if name == "append" and not system.has_lower:
                continue
            for row, order in WORKS[name]:
                if order.startswith("cold "):
                    if not machine.IS_ROOT:
                        continue
                    machine.drop_caches()
                yield row, work(order.removeprefix("cold "))


def table(values, failures, names):
    """Lines of a Markdown table: medians in seconds."""
    lines = []
    for row in [row for work in WORKS.values() for row, _ in work if row in values]:
        medians = {name: median(found) for name, found in values[row].items()}
        cells = []
        for name in names:
            rival = medians.get("plain" if row == AGAINST_DISK else RIVALS.get(name))
            text = f"{medians[name]:.3g}" if name in medians else "-"
            if name in RIVALS and name in medians and rival:
                text += f" ({medians[name] / rival:.2f})"
            cells.append(text)
        lines.append([row, *cells])
    yield from markdown(["seconds", *names], lines)
    yield ""
    yield (
        "In parentheses: fuse over fuse-overlayfs, kernel over kernel overlayfs on the kernel's squashfs; for the reading, "
        "both over plain."
    )
    for name, reason in failures.items():
        yield f"failed: {name}: {reason}"


def interrupted(number, _):
    raise Interrupted(signal.Signals(number).name)


def main():
    args = arguments()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    scratch = Path(tempfile.mkdtemp(prefix="siphon-bench.", dir=args.scratch))
    scratch.chmod(0o755)
    if machine.IS_ROOT:
        shutil.chown(scratch, machine.ACCOUNT)
    values, failures = {}, {}
    try:
        inputs = scratch / "inputs"
        machine.run(machine.as_user(["mkdir", str(inputs)]))
        image = make_inputs(inputs, args)
        systems, missing = mergers.find(image, scratch, args.siphon)
        if args.systems:
            systems = [system for system in systems if system.name in args.systems.split(",")]
        for line in missing:
            say(line)
        for turn in range(args.runs):
            for system in systems:
                if system.name in failures:
                    continue
                say(f"round {turn + 1}: {system.name}")
                try:
                    for row, seconds in measure(system, args.work, inputs):
                        values.setdefault(row, {}).setdefault(system.name, []).append(seconds)
                except Failure as failure:
                    say(f"failed: {failure}")
                    failures[system.name] = str(failure)
        names = [system.name for system in systems]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    about = f"{len(os.sched_getaffinity(0))} cores, Linux {platform.release()}; medians of {args.runs}"
    if args.json:
        args.json.write_text(json.dumps({"about": about, "figures": values, "failures": failures}, indent=1) + "\n")
    print("\n".join([about, "", *table(values, failures, names)]))


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"bench: {failure}")
    except Interrupted as name:
        sys.exit(f"bench: ended by {name}")
