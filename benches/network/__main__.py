"""Measures what an image behind a slow link costs: time, requests, bytes. `make bench-network` calls it.

A web server (link.py) with 10 ms of latency each way and 1000 Mbit/s for all connections serves the image's directory; an
image of layers comes from a docker-registry that is reached by the same kind of link.
Before each figure nothing of the image is in memory: caches are dropped, and daemons have left.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import socket
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
    "layers": "the layers of the image in the registry, all at once, by curl and gzip -dc",
    "unindexed": "siphon exec of that image: true, nothing known of it, no index in the registry",
    "indexed": "the program of that image, nothing cached, with an index and a trace in the registry",
    "chunked": "the program of the image as eStargz, nothing known of it",
    "estargz": "the program of the image as eStargz, nothing cached, with a trace of an earlier run",
    "peer": "apptainer exec of the remote image (APPTAINER names the command)",
    "converted": "apptainer exec of the image in the registry",
}
MIB = 1 << 20
STORM = 32
LAYERED = ("layers", "unindexed", "indexed", "chunked", "estargz", "converted")
REGISTRY = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {storage}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


class Wire:
    """The server and its control."""

    def __init__(self, served, args):
        command = [sys.executable, str(Path(__file__).with_name("link.py")), *served]
        command += ["--latency-ms", str(args.latency_ms), "--mbit", str(args.mbit)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ports = json.loads(self.process.stdout.readline())
        self.host = f"127.0.0.1:{ports['port']}"
        self.url = f"http://{self.host}"
        self.control = f"http://127.0.0.1:{ports['control']}"

    def tell(self, word):
        with urllib.request.urlopen(f"{self.control}/{word}") as answer:
            return json.load(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Registry:
    """A docker-registry over a copy of another one's storage: its blobs are linked, and what is sent to it is its own."""

    def __init__(self, storage, scratch):
        own = scratch / "registry"
        shutil.copytree(storage / "docker/registry/v2/repositories", own / "docker/registry/v2/repositories")
        shutil.copytree(storage / "docker/registry/v2/blobs", own / "docker/registry/v2/blobs", copy_function=os.link)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        config = scratch / "registry.yml"
        config.write_text(REGISTRY.format(storage=own, port=self.port))
        try:
            self.process = subprocess.Popen(["docker-registry", "serve", str(config)], stderr=subprocess.DEVNULL)
        except OSError as error:
            raise Failure(f"cannot run docker-registry: {error.strerror}") from error
        deadline = time.monotonic() + machine.PATIENCE_SECONDS
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise Failure("docker-registry does not answer") from None
                time.sleep(0.05)

    def close(self):
        self.process.terminate()
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
        self.wire = self.web = Wire([str(self.image.parent)], args)
        self.remote = f"{self.wire.url}/{self.image.name}"
        self.registry = self.registry_wire = None
        self.published = False

    def close(self):
        machine.end_processes(str(self.scratch / "run"))
        for part in (self.web, self.registry_wire, self.registry):
            if part:
                part.close()
        shutil.rmtree(self.scratch)

    def use_registry(self):
        """From now on the registry is on the wire, which is started the first time."""
        if not self.args.registry:
            raise Failure("REGISTRY, the storage of a docker-registry, is not given")
        if not self.registry:
            self.registry = Registry(self.args.registry.resolve(), self.scratch)
            self.registry_wire = Wire(["--to", f"127.0.0.1:{self.registry.port}"], self.args)
        self.wire = self.registry_wire

    def use_web(self):
        self.wire = self.web

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
        sizes = {f"{name} MiB": counters[f"{key}_bytes"] / MIB for name, key in (("read", "storage"), ("decoded", "decoded"))}
        return {**sizes, "waited": counters["storage_nanos"] / 1e9}

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

    def of_layers(self, name, *words):
        """siphon exec of an image in the registry."""
        return self.siphon("exec", "--no-https", f"docker://{self.wire.host}/{name}", *words)

    def layers(self):
        self.use_registry()
        name, _, tag = self.args.layered.rpartition(":")
        base = f"{self.wire.url}/v2/{name}"
        accepted = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
        asked = urllib.request.Request(f"{base}/manifests/{tag}", headers={"Accept": accepted})
        with urllib.request.urlopen(asked) as answer:
            urls = [f"{base}/blobs/{layer['digest']}" for layer in json.load(answer)["layers"]]
        self.fresh()
        script = 'for url; do curl -fs "$url" | gzip -dc | cat >/dev/null & done; wait'
        seconds, _ = machine.timed(machine.as_user(["bash", "-c", script, "layers", *urls]))
        counts = self.wire.tell("stats")
        return {"seconds": seconds, "requests": counts["requests"], "MiB": counts["bytes"] / MIB}

    def unindexed(self):
        self.use_registry()
        if self.published:
            raise Failure("the index that an earlier work sent is in the registry")
        self.fresh()
        return self.timed(self.of_layers(self.args.layered, "true"))

    def indexed(self):
        self.use_registry()
        if not self.published:
            machine.run(self.of_layers(self.args.layered, *self.program))
            machine.end_processes(str(self.scratch / "run"))
            machine.run(self.siphon("index", "--push", f"docker://{self.wire.host}/{self.args.layered}"))
            self.published = True
        self.fresh()
        return self.timed(self.of_layers(self.args.layered, *self.program))

    def chunked(self):
        self.use_registry()
        if not self.args.estargz:
            raise Failure("ESTARGZ, the name of the image as eStargz in the registry, is not given")
        self.fresh()
        return self.timed(self.of_layers(self.args.estargz, *self.program))

    def estargz(self):
        self.chunked()
        self.fresh(("traces",))
        return self.timed(self.of_layers(self.args.estargz, *self.program))

    def peer(self):
        return self.apptainer(self.remote)

    def converted(self):
        self.use_registry()
        return self.apptainer("--no-https", f"docker://{self.wire.host}/{self.args.layered}")

    def apptainer(self, *image):
        command = os.environ.get("APPTAINER")
        if not command:
            raise Failure("APPTAINER is not set")
        self.fresh()
        seconds, _ = machine.timed([*shlex.split(command), "exec", "--disable-cache", *image, *self.program])
        counts = self.wire.tell("stats")
        return {"seconds": seconds, "requests": counts["requests"], "MiB": counts["bytes"] / MIB}


def arguments():
    """The command line. Where an option is not given, the variable of its name counts."""
    default = os.environ.get
    parser = argparse.ArgumentParser(prog="network", description=__doc__.split("\n")[0])
    parser.add_argument("work", nargs="*", help="; ".join(f"{name}: {what}" for name, what in WORKS.items()))
    parser.add_argument("--image", type=Path, default=default("IMAGE"), required=not default("IMAGE"))
    parser.add_argument("--program", default=default("PROGRAM") or "python3 -c 'import torch'")
    parser.add_argument("--registry", type=Path, default=default("REGISTRY"), help="storage of a docker-registry")
    parser.add_argument("--layered", default=default("LAYERED") or "cuda:latest", help="the image in it (%(default)s)")
    parser.add_argument("--estargz", default=default("ESTARGZ"), help="the same as eStargz in it: see estargz.py")
    parser.add_argument("--runs", type=int, default=default("RUNS") or 3, help="rounds (%(default)s)")
    parser.add_argument("--latency-ms", type=float, default=10, help="each way (%(default)s)")
    parser.add_argument("--mbit", type=float, default=1000, help="of all connections (%(default)s)")
    parser.add_argument("--siphon", type=Path, default=default("SIPHON"), help="else the release build")
    parser.add_argument("--json", type=Path, help="a file for the raw figures")
    parser.add_argument("--log", type=Path, help="a file for the requests of the last work: time, offset, bytes")
    args = parser.parse_args()
    given = {name: args.registry for name in LAYERED}
    given |= {name: args.registry and args.estargz for name in ("chunked", "estargz")}
    given |= {"peer": os.environ.get("APPTAINER"), "converted": args.registry and os.environ.get("APPTAINER")}
    args.work = args.work or [name for name in WORKS if given.get(name, True)]
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
                    bench.use_web()
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
