"""Who merges an image and a layer. Each makes a new layer, has a worker use it, and leaves nothing behind."""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import machine
from machine import Failure

WORKER = Path(__file__).with_name("worker.py")
SCRATCH = "siphon-bench-work"


class System:
    """A directory that can be written to: `root`, once it is mounted. `prefix` is put before the worker's command."""

    name = None
    has_lower = True

    def __init__(self, image, scratch):
        self.image = image
        self.scratch = scratch / self.name.replace(" ", "-")
        self.root = self.scratch / "root"
        self.prefix = []
        self.python = machine.python()

    @contextlib.contextmanager
    def worker(self, inputs):
        """A function that does the work that it is told, and returns the seconds that it took."""
        machine.run(machine.as_user(["mkdir", str(self.scratch)]))
        try:
            self.mount()
            # The worker's own file must be open to whom it runs as.
            copy = inputs / "worker.py"
            command = [*self.prefix, self.python, "-B", str(copy), str(self.root / SCRATCH), str(inputs)]
            process = subprocess.Popen(
                machine.as_user(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )

            def work(name):
                with contextlib.suppress(BrokenPipeError):
                    print(name, file=process.stdin, flush=True)
                answer = json.loads(process.stdout.readline() or '{"error": "the worker died"}')
                if "error" in answer:
                    raise Failure(answer["error"])
                return answer["seconds"]

            try:
                yield work
            finally:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
                process.wait()
        finally:
            self.release()
            remove(self.scratch)

    def mount(self):
        """Merges a new layer with the image on `root`. Only `scratch` is there yet."""

    def release(self):
        """Undoes it."""


class Siphon(System):
    """A sandbox, by one of the two engines."""

    def __init__(self, image, scratch, binary, engine):
        self.name = f"siphon {engine}"
        super().__init__(image, scratch)
        self.binary = binary
        self.engine = engine
        self.layer = self.scratch / "layer"
        state = self.scratch / "state"
        self.environment = [
            "env", f"HOME={self.scratch}", f"SIPHON_RUNTIME_DIR={state}", "SIPHON_IDLE_SECONDS=600",
            f"SIPHON_LAYER_ENGINE={engine}",
        ]

    def siphon(self, *words):
        return machine.run(machine.as_user([*self.environment, str(self.binary), *map(str, words)]))

    def mount(self):
        self.siphon("build", "--sandbox", self.layer, self.image)
        self.siphon("exec", "--writable", self.layer, "/true")
        (daemon,) = json.loads(self.siphon("status", "--json"))
        if daemon["engine"]["name"] != self.engine:
            raise Failure(f"served by {daemon['engine']}")
        self.pid, self.root = daemon["pid"], Path(daemon["mount"])
        # The mount is in the daemon's namespaces, and the host's programs are there too.
        self.prefix = ["nsenter", "--preserve-credentials", "--user", "--mount", "--target", str(self.pid)]

    def release(self):
        machine.end_processes(str(self.layer))


class FuseOverlayfs(System):
    """fuse-overlayfs over squashfuse_ll: what apptainer does where the kernel's overlayfs cannot be had."""

    name = "fuse-overlayfs"

    def __init__(self, image, scratch, merger, squashfuse):
        super().__init__(image, scratch)
        self.merger, self.squashfuse = merger, squashfuse

    def mount(self):
        lower, upper, work = (self.scratch / name for name in ("lower", "upper", "work"))
        machine.run(machine.as_user(["mkdir", *map(str, (self.root, lower, upper, work))]))
        machine.run(machine.as_user([*self.squashfuse, str(self.image), str(lower)]), patient=True)
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        machine.run(machine.as_user([*self.merger, "-o", options, str(self.root)]), patient=True)

    def release(self):
        for mount in (self.root, self.scratch / "lower"):
            machine.unmount(mount, machine.as_user(["fusermount3", "-u", str(mount)]))
        machine.end_processes(str(self.scratch))


class KernelOverlay(System):
    """The kernel's overlayfs over its own squashfs, mounted by root and used by the account."""

    name = "kernel overlayfs"

    def mount(self):
        lower, upper, work = (self.scratch / name for name in ("lower", "upper", "work"))
        machine.run(machine.as_user(["mkdir", *map(str, (self.root, lower, upper, work))]))
        machine.run(["mount", "-o", "loop,ro", "-t", "squashfs", str(self.image), str(lower)], patient=True)
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        machine.run(["mount", "-t", "overlay", "-o", options, "overlay", str(self.root)], patient=True)

    def release(self):
        for mount in (self.root, self.scratch / "lower"):
            machine.unmount(mount, ["umount", str(mount)])


class Plain(System):
    """The filesystem that the layers are on."""

    name = "plain"
    has_lower = False

    def mount(self):
        machine.run(machine.as_user(["mkdir", str(self.root)]))


def remove(path):
    """Also what nobody may list, as overlayfs leaves it."""
    def opened(function, name, _):
        os.chmod(os.path.dirname(name), 0o700)
        os.chmod(name, 0o700)
        function(name)

    if machine.IS_ROOT:
        shutil.rmtree(path)
    else:
        shutil.rmtree(path, onerror=opened)


def find(image, scratch, binary):
    """All systems that can be had here, and a line for each that cannot."""
    systems, missing = [Siphon(image, scratch, binary, "fuse"), Siphon(image, scratch, binary, "kernel")], []
    merger = shlex.split(os.environ.get("FUSE_OVERLAYFS") or "fuse-overlayfs")
    squashfuse = shlex.split(os.environ.get("SQUASHFUSE_LL") or "squashfuse_ll")
    if shutil.which(merger[0]) and shutil.which(squashfuse[0]):
        systems.append(FuseOverlayfs(image, scratch, merger, squashfuse))
    else:
        missing.append("no fuse-overlayfs or no squashfuse_ll; FUSE_OVERLAYFS and SQUASHFUSE_LL name the commands")
    if machine.IS_ROOT:
        systems.append(KernelOverlay(image, scratch))
    else:
        missing.append("no overlayfs over squashfs, and nothing cold: they need root")
    return [*systems, Plain(image, scratch)], missing
