"""Measures what an image behind a slow link costs: time, requests, bytes. `make bench-network` calls it.

A web server (link.py) with 10 ms of latency each way and 1000 Mbit/s for all connections serves the image's directory.
Before each figure nothing of the image is in memory: caches are dropped, and daemons have left.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median

sys.dont_write_bytecode = True
REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "benches" / "compare"))

import machine
from machine import Failure

WORKS = {
    "local": "the program, of the image as a local file, first use",
    "again": "the same with a trace of it",
    "first": "of the remote image, nothing known of it",
    "traced": "of the remote image, nothing cached, with a trace of an earlier run",
    "offline": "of the remote image, from the disk cache, with the network cut",
    "list": "siphon ls -lR of the remote image",
    "mount": "siphon exec of the remote image: true",
    "storm": "32 processes that start the program's interpreter at once",
    "peer": "apptainer exec of the remote image (APPTAINER names the command)",
}
MIB = 1 << 20
STORM = 32


class Wire:
    """The server and its control."""

    def __init__(self, directory, latency_ms, mbit):
        command = [sys.executable, str(Path(__file__).with_name("link.py")), str(directory)]
        command += ["--latency-ms", str(latency_ms), "--mbit", str(mbit)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ports = json.loads(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{ports['port']}"
        self.control = f"http://127.0.0.1:{ports['control']}"

    def tell(self, word):
        with urllib.request.urlopen(f"{self.control}/{word}") as answer:
            return json.load(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Bench:
    """One image, and a copy of siphon with a state of its own."""

    def __init__(self, args):
        self.args = args
        self.image = args.image.resolve()
        self.program = shlex.split(args.program)
        self.scratch = Path(tempfile.mkdtemp(prefix="siphon-network.", dir="/var/tmp"))
        self.scratch.chmod(0o755)
        if machine.IS_ROOT:
            shutil.chown(self.scratch, machine.ACCOUNT)
        self.binary = self.scratch / "siphon"
        shutil.copy(args.siphon, self.binary)
        self.cache = self.scratch / "cache"
        machine.run(machine.as_user(["mkdir", "-m", "700", str(self.scratch / "run")]))
        self.wire = Wire(self.image.parent, args.latency_ms, args.mbit)
        self.remote = f"{self.wire.url}/{self.image.name}"

    def close(self):
        machine.end_processes(str(self.scratch / "run"))
        self.wire.close()
        shutil.rmtree(self.scratch)

    def siphon(self, *words, wrapped=()):
        environment = [f"SIPHON_RUNTIME_DIR={self.scratch / 'run'}", f"SIPHON_CACHEDIR={self.cache}"]
        return machine.as_user(["env", "-C", "/", *environment, *wrapped, str(self.binary), "--quiet", *words])

    def fresh(self, keep=()):
        """No daemon, nothing in memory, and of the cache only what is named."""
        machine.end_processes(str(self.scratch / "run"))
        for entry in (self.cache / "siphon").glob("*"):
            if entry.name not in keep:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        machine.drop_caches()
        machine.run([str(self.binary), "--version"])
        self.wire.tell("reset")

    def timed(self, command):
        """Seconds, and what went over the wire until its daemon had left."""
        seconds, _ = machine.timed(command)
        fetched = self.status()
        counts = self.wire.tell("log")
        log = counts.pop("log")
        if self.args.log:
            self.args.log.write_text(json.dumps(log))
        return {"seconds": seconds, "requests": counts["requests"], "MiB": counts["bytes"] / MIB,
                "connections": counts["connections"], **fetched}

    def status(self):
        """What the daemon says of itself, if there is one."""
        daemons = json.loads(machine.run(self.siphon("status", "--json")))
        if len(daemons) != 1:
            return {}
        counters = daemons[0]["counters"]
        return {"read MiB": counters["storage_bytes"] / MIB, "waited": counters["storage_nanos"] / 1e9}

    def run_local(self, keep):
        self.fresh(keep)
        return self.timed(self.siphon("exec", str(self.image), *self.program))

    def local(self):
        return self.run_local(())

    def again(self):
        return self.run_local(("traces",))

    def first(self):
        self.fresh()
        return self.timed(self.siphon("exec", self.remote, *self.program))

    def traced(self):
        self.learn()
        self.fresh(("traces",))
        return self.timed(self.siphon("exec", self.remote, *self.program))

    def learn(self):
        """One run, if there is no trace of one."""
        if not list((self.cache / "siphon" / "traces").glob("*")) or not list((self.cache / "siphon").glob("v*/*/*.pack")):
            self.first()
            machine.end_processes(str(self.scratch / "run"))

    def offline(self):
        self.learn()
        self.fresh(tuple(entry.name for entry in (self.cache / "siphon").glob("*")))
        self.wire.tell("cut")
        try:
            return self.timed(self.siphon("exec", self.remote, *self.program))
        finally:
            self.wire.tell("mend")

    def list(self):
        self.fresh()
        return self.timed(self.siphon("ls", "-lR", self.remote))

    def mount(self):
        self.fresh()
        return self.timed(self.siphon("exec", self.remote, "true"))

    def storm(self):
        self.fresh()
        script = "for i in $(seq 32); do \"$@\" & done; wait"
        words = self.siphon("exec", self.remote, self.program[0], "-c", "import json", wrapped=["bash", "-c", script, "storm"])
        return self.timed(words)

    def peer(self):
        command = os.environ.get("APPTAINER")
        if not command:
            raise Failure("APPTAINER is not set")
        self.fresh()
        seconds, _ = machine.timed([*shlex.split(command), "exec", "--disable-cache", self.remote, *self.program])
        counts = self.wire.tell("stats")
        return {"seconds": seconds, "requests": counts["requests"], "MiB": counts["bytes"] / MIB}


def arguments():
    """The command line. Where an option is not given, the variable of its name counts."""
    default = os.environ.get
    parser = argparse.ArgumentParser(prog="network", description=__doc__.split("\n")[0])
    parser.add_argument("work", nargs="*", help="; ".join(f"{name}: {what}" for name, what in WORKS.items()))
    parser.add_argument("--image", type=Path, default=default("IMAGE"), required=not default("IMAGE"))
    parser.add_argument("--program", default=default("PROGRAM") or "python3 -c 'import torch'")
    parser.add_argument("--runs", type=int, default=default("RUNS") or 3, help="rounds (%(default)s)")
    parser.add_argument("--latency-ms", type=float, default=10, help="each way (%(default)s)")
    parser.add_argument("--mbit", type=float, default=1000, help="of all connections (%(default)s)")
    parser.add_argument("--siphon", type=Path, default=default("SIPHON"), help="else the release build")
    parser.add_argument("--json", type=Path, help="a file for the raw figures")
    parser.add_argument("--log", type=Path, help="a file for the requests of the last work: time, offset, bytes")
    args = parser.parse_args()
    args.work = args.work or [name for name in WORKS if name != "peer"]
    for name in set(args.work) - set(WORKS):
        parser.error(f"there is no work {name}; there are: {' '.join(WORKS)}")
    target = Path(default("CARGO_TARGET_DIR") or REPOSITORY / "target")
    args.siphon = Path(args.siphon or target / "release" / "siphon")
    if not machine.IS_ROOT:
        parser.error("needs root, to drop caches; what is measured runs as " + machine.ACCOUNT)
    return args


def main():
    args = arguments()
    bench = Bench(args)
    figures = {name: [] for name in args.work}
    try:
        for turn in range(args.runs):
            for name in args.work:
                started = time.strftime("%H:%M:%S")
                try:
                    figures[name].append(getattr(bench, name)())
                except Failure as failure:
                    print(f"bench: {name} failed: {failure}", file=sys.stderr)
                    continue
                said = ", ".join(f"{value:.3g} {unit}" for unit, value in figures[name][-1].items())
                print(f"bench: {started} {name}, round {turn + 1}: {said}", file=sys.stderr, flush=True)
    finally:
        bench.close()
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{os.cpu_count()} cores, Linux {platform.release()}; {bench.image.name}; medians of {args.runs}")
    print("| work | seconds | requests | MiB over the wire |\n|---|---|---|---|")
    for name, values in figures.items():
        if values:
            middle = {unit: median(value[unit] for value in values) for unit in ("seconds", "requests", "MiB")}
            print(f"| {name} | {middle['seconds']:.2f} | {middle['requests']:.0f} | {middle['MiB']:.1f} |")


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"bench: {failure}")
