"""Measures what making an image costs: sandboxes, commits, pulls. `make bench-images IMAGE=x.sif` calls it.

Of each work three runs (--runs), siphon and what it is held against in turn, with caches dropped before each run of `pull` and
warm for the others. What is written is synced before the clock stops, for both. Beside the time: the most memory of the process,
and what it had on disk beyond its result at most, seen at its open files twenty times a second.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

sys.dont_write_bytecode = True
REPOSITORY = Path(__file__).resolve().parents[2]
WORKS = {
    "sandbox": "build --sandbox of the image",
    "commit": "commit of a sandbox with 100 MB of new files, against cp of the image",
    "reflink": "the same on new xfs and btrfs file systems on loop devices (root)",
    "pull": "pull docker:// of the layout from docker-registry on loopback, against mksquashfs of --tree",
    "peer": "the same pull by apptainer, once (APPTAINER names the command)",
}
MIB = 1 << 20
CHANGE_BYTES = 100_000_000
SAMPLE_SECONDS = 0.05


class Failure(Exception):
    pass


def check(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise Failure(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout


def written(pid, known):
    """Bytes on disk of the files that a process has open for writing."""
    total = 0
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            flags = next(line for line in open(f"/proc/{pid}/fdinfo/{entry}") if line.startswith("flags"))
            data = os.stat(f"/proc/{pid}/fd/{entry}")
        except (OSError, StopIteration):
            continue
        is_file = data.st_mode & 0o170000 == 0o100000
        if is_file and int(flags.split()[1], 8) & 3 and (data.st_dev, data.st_ino) not in known:
            known.add((data.st_dev, data.st_ino))
            total += data.st_blocks * 512
    return total


def watch(pid, most):
    try:
        while True:
            most[0] = max(most[0], written(pid, set()))
            time.sleep(SAMPLE_SECONDS)
    except OSError:
        return


def measured(command, environment=None):
    """Seconds, MiB of memory at most, bytes on disk at most."""
    begin = time.monotonic()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    most = [0]
    watcher = threading.Thread(target=watch, args=(process.pid, most))
    watcher.start()
    message = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - begin
    watcher.join()
    if status != 0:
        raise Failure(f"{' '.join(map(str, command))}: {message}")
    return {"s": seconds, "cpu": usage.ru_utime + usage.ru_stime, "mib": usage.ru_maxrss / 1024, "disk": most[0]}


def drop_caches():
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        raise Failure("caches cannot be dropped: run this as root") from None


class Bench:
    def __init__(self, options, place):
        self.options, self.place = options, place
        self.image = Path(options.image).resolve()
        self.environment = {**os.environ, "SIPHON_CACHE_DIR": str(place / "cache"), "HOME": str(place)}
        self.rows = []

    def siphon(self, *arguments):
        return measured([self.options.siphon, *arguments], self.environment)

    def row(self, what, runs, against=None):
        line = f"{what:<34} {median(run['s'] for run in runs):8.3f} s ({min(run['s'] for run in runs):.3f})"
        line += f" {median(run['cpu'] for run in runs):6.2f} s of processors, {max(run['mib'] for run in runs):4.0f} MiB"
        if "beyond" in runs[0]:
            line += f", {max(run['beyond'] for run in runs) / MIB:.1f} MiB beyond the result"
        if against:
            line += f", ratio {median(run['s'] for run in runs) / median(run['s'] for run in against):.2f}"
            line += " (in pairs " + " ".join(f"{a['s'] / b['s']:.2f}" for a, b in zip(runs, against)) + ")"
        print(line, flush=True)

    def sandbox(self):
        runs = []
        for _ in range(max(5, self.options.runs)):
            runs.append(self.siphon("build", "--sandbox", self.place / "box", self.image))
            shutil.rmtree(self.place / "box")
        self.row("build --sandbox", runs)

    def changed_sandbox(self, place, image):
        check(self.options.siphon, "build", "--sandbox", place / "box", image, env=self.environment)
        new, size = place / "box" / "new", 0
        new.mkdir()
        for file in sorted(Path("/usr/lib").rglob("*")):
            if size >= CHANGE_BYTES:
                break
            if file.is_file() and not file.is_symlink():
                shutil.copy(file, new / f"{len(os.listdir(new))}-{file.name}")
                size += file.stat().st_size

    def commits(self, place, image, command, name):
        self.changed_sandbox(place, image)
        out, copies, commits = place / "out.sif", [], []
        for _ in range(self.options.runs):
            copies.append(measured(["sh", "-c", f"{command} '{image}' '{out}' && sync '{out}'"]))
            out.unlink()
            commits.append(self.siphon("build", out, place / "box"))
            commits[-1]["beyond"] = commits[-1]["disk"] - out.stat().st_blocks * 512
            out.unlink()
        self.row(f"{command} and sync, {name}", copies)
        self.row(f"commit, {name}", commits, copies)
        shutil.rmtree(place / "box")

    def commit(self):
        self.commits(self.place, self.image, "cp --reflink=never", "here")

    def reflink(self):
        for kind, options in [("xfs", ["-q"]), ("btrfs", ["-q"])]:
            disk, mount = self.place / "disk", self.place / "mount"
            mount.mkdir(exist_ok=True)
            with open(disk, "wb") as file:
                file.truncate(3 * self.image.stat().st_size + (1 << 30))
            check(f"mkfs.{kind}", *options, disk)
            check("mount", "-o", "loop", disk, mount)
            try:
                shutil.copy(self.image, mount / "image.sif")
                os.sync()
                self.commits(mount, mount / "image.sif", "cp --reflink=always", kind)
            finally:
                check("umount", mount)
                disk.unlink()

    def pull(self):
        with Registry(self.place, self.options.layout, self.options.uri) as registry:
            out, squashfs = self.place / "pulled.sif", self.place / "tree.sqfs"
            pulls, packs = [], []
            for _ in range(self.options.runs):
                drop_caches()
                pulls.append(self.siphon("pull", "--disable-cache", "--force", out, registry.uri))
                pulls[-1]["beyond"] = pulls[-1]["disk"] - out.stat().st_blocks * 512
                pulled_bytes = out.stat().st_size
                out.unlink()
                drop_caches()
                packs.append(
                    measured(
                        ["sh", "-c", f"mksquashfs '{self.options.tree}' '{squashfs}' -comp zstd -Xcompression-level 3"
                         f" -noappend -quiet -no-progress && sync '{squashfs}'"]
                    )
                )
                packed_bytes = squashfs.stat().st_size
                squashfs.unlink()
            self.row("mksquashfs and sync, cold", packs)
            self.row("pull docker://, cold", pulls, packs)
            print(f"{'size':<34} {pulled_bytes} to {packed_bytes}: {pulled_bytes / packed_bytes:.4f}{registry.cpu()}")

    def peer(self):
        with Registry(self.place, self.options.layout, self.options.uri) as registry:
            own = {**self.environment, "APPTAINER_NOHTTPS": "1", "APPTAINER_CACHEDIR": str(self.place / "theirs")}
            own["APPTAINER_TMPDIR"] = str(self.place)
            drop_caches()
            command = [*os.environ.get("APPTAINER", "apptainer").split(), "pull", "--disable-cache", "--no-https"]
            self.row("apptainer pull, cold", [measured([*command, self.place / "theirs.sif", registry.uri], own)])
            (self.place / "theirs.sif").unlink()


class Registry:
    """docker-registry with the image in it, or the one that --uri names, which has it."""

    def __init__(self, place, layout, uri=None):
        if uri is not None:
            self.layout, self.uri = None, uri
            return
        if layout is None:
            raise Failure("--layout names an OCI layout for this")
        self.place, self.layout = place, layout
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"docker://127.0.0.1:{self.port}/image:latest"

    def __enter__(self):
        if self.layout is None:
            return self
        configuration = self.place / "registry.yml"
        configuration.write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {self.place}/registry}}}}\n"
            f"http: {{addr: '127.0.0.1:{self.port}'}}\n"
        )
        self.process = subprocess.Popen(
            ["docker-registry", "serve", configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                break
            except OSError:
                time.sleep(0.05)
        check("skopeo", "copy", "--dest-tls-verify=false", f"oci:{self.layout}:latest", self.uri)
        self.before = self.cpu_seconds()
        return self

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def cpu(self):
        if self.layout is None:
            return ""
        return f"; the registry took {self.cpu_seconds() - self.before:.1f} s of processors"

    def __exit__(self, *_):
        if self.layout is None:
            return
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        shutil.rmtree(self.place / "registry", ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", help="; ".join(f"{name}: {text}" for name, text in WORKS.items()))
    parser.add_argument("--image", required=True, help="a SIF")
    parser.add_argument("--layout", help="an OCI layout with the image `latest`")
    parser.add_argument("--uri", help="the docker:// name of the same in a registry that runs, in place of --layout")
    parser.add_argument("--tree", help="what it unpacks to")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--siphon", default=REPOSITORY / "target/release/siphon")
    parser.add_argument("--place", default="/var/tmp", help="where to work: a file system that is not tmpfs")
    options = parser.parse_args()
    unknown = set(options.works) - set(WORKS)
    if unknown:
        parser.error(f"there is no work {', '.join(unknown)}")
    with tempfile.TemporaryDirectory(prefix="siphon-bench-", dir=options.place) as place:
        bench = Bench(options, Path(place))
        for name in options.works or [work for work in WORKS if work != "peer"]:
            getattr(bench, name)()


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"bench: {failure}")
