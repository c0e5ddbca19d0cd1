"""The images that are measured: one that is given, or one of this machine's files; and one of very many small files."""

import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import machine
from machine import Failure

# Where a squashfs may begin: at any page of the first MiBs. In a SIF it is aligned to pages.
SEARCHED_BYTES, PAGE_BYTES, MAGIC = 16 << 20, 4096, b"hsqs"
# Random reads of a file that fits into the kernel's readahead say nothing.
BIG_FILE_BYTES, BIG_FILES = 1 << 20, 32
MOUNT_POINTS = ("dev", "etc", "home", "proc", "sys", "tmp")
# What a Python program without torch may import.
STANDARD_MODULES = "asyncio, email.message, http.server, json, sqlite3, unittest, xml.dom.minidom"
MILLION_DIRECTORIES, MILLION_FILES = 1000, 1_000_000


@dataclass
class Image:
    """An image and what of its content the works name, relative to its root."""

    path: Path
    offset_bytes: int = field(init=False)
    top: str = "."  # what tar reads
    halves: tuple = ()  # two big directories, side by side
    big_files: tuple = ()
    program: tuple = ()  # what is started

    def __post_init__(self):
        with self.path.open("rb") as file:
            head = file.read(SEARCHED_BYTES)
        starts = (at for at in range(0, len(head), PAGE_BYTES) if head.startswith(MAGIC, at))
        self.offset_bytes = next(starts, None)
        if self.offset_bytes is None:
            raise Failure(f"there is no squashfs in {self.path}")

    def survey(self, root):
        """Finds what the works name, in the content that is mounted on `root`."""
        listing = machine.run(machine.pipeline('find "$1" -xdev -type f -printf "%s %P\\0"', root))
        sizes = {}
        for line in listing.split("\0")[:-1]:
            size, name = line.split(" ", 1)
            sizes[name] = int(size)
        self.top = "usr" if any(name.startswith("usr/") for name in sizes) else "."
        self.halves = two_directories(sizes)
        largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:BIG_FILES]
        self.big_files = tuple(name for name in largest if sizes[name] >= BIG_FILE_BYTES)
        has_torch = any(name.endswith("-packages/torch/__init__.py") for name in sizes)
        has_python = any(PurePath(name).match("bin/python3*") for name in sizes)
        modules = "torch" if has_torch else STANDARD_MODULES
        self.program = ("python3", "-c", f"import {modules}") if has_python else ()


def two_directories(sizes):
    """Two directories, none within the other, of which the smaller one is as large as can be."""
    totals = {}
    for name, size in sizes.items():
        for parent in PurePath(name).parents[:-1]:
            totals[parent] = totals.get(parent, 0) + size
    by_size = sorted(totals, key=lambda directory: (-totals[directory], directory))
    for position, smaller in enumerate(by_size):
        for larger in by_size[:position]:
            if larger not in smaller.parents and smaller not in larger.parents:
                return str(larger), str(smaller)
    return ()


def make_sample(path):
    """Makes an image of this machine's programs, libraries and documentation: many small files and some large ones."""
    wanted = ("usr/bin", "usr/lib64", "usr/share", "usr/lib/*-linux-gnu", "usr/lib/python3*")
    sources = [str(source.relative_to("/")) for pattern in wanted for source in Path("/").glob(pattern)]
    links = [word for name in ("bin", "lib", "lib64") for word in ("-p", f"{name} s 777 0 0 usr/{name}")]
    directories = [word for name in MOUNT_POINTS for word in ("-p", f"{name} d 755 0 0")]
    options = ["-comp", "zstd", "-Xcompression-level", "3", "-all-root", "-no-strip", "-quiet", "-no-progress"]
    machine.run(["env", "-C", "/", "mksquashfs", *sources, str(path), *options, *links, *directories])


def make_million(path):
    """Makes an image of a million files, every second one empty, the others of a few bytes."""
    # Duplicates are not looked for: of files of one size, each would be compared with each.
    command = ["sqfstar", "-comp", "zstd", "-no-duplicates", "-quiet", "-no-progress", str(path)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        maker = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **quiet)
    except OSError as error:
        raise Failure(f"cannot run sqfstar: {error.strerror}") from error
    try:
        for piece in million_files():
            maker.stdin.write(piece)
        maker.stdin.close()
    except BrokenPipeError:
        pass  # It has failed, as its exit code says.
    except BaseException:
        maker.kill()
        raise
    finally:
        code = maker.wait()
    if code:
        raise Failure(f"sqfstar ends with exit code {code}")


def million_files():
    """A tar stream, one piece a directory."""
    each = MILLION_FILES // MILLION_DIRECTORIES
    for directory in range(MILLION_DIRECTORIES):
        members = [tar_member(f"{directory:03}/", b"")]
        for number in range(each):
            content = f"{directory}/{number}\n".encode() if number % 2 else b""
            members.append(tar_member(f"{directory:03}/{number:03}", content))
        yield b"".join(members)
    yield bytes(2 * tarfile.BLOCKSIZE)


def tar_member(name, content):
    """One file, or a directory if `name` ends in a slash. tarfile's own headers take ten times as long."""
    kind, mode = (b"5", 0o755) if name.endswith("/") else (b"0", 0o644)
    owner_and_size = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, 0, 0, len(content), 1_600_000_000)
    head, tail = name.encode().ljust(100, b"\0") + owner_and_size, kind + bytes(100) + b"ustar\x0000"
    total = sum(head) + sum(tail) + 8 * ord(" ")
    header = (head + b"%06o\0 " % total + tail).ljust(tarfile.BLOCKSIZE, b"\0")
    return header + content.ljust(-(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, b"\0")
