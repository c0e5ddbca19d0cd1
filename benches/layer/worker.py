"""Works on a file tree, by one process that stays: the bench names a work on a line, and gets the seconds that it took."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

FILES = 10_000
PER_DIRECTORY = 100
MIB = 1 << 20


def names(root):
    """Where the small files are."""
    return [f"{root}/{number // PER_DIRECTORY}/{number}" for number in range(FILES)]


def create(root, _):
    """10,000 files of 1 KiB, a hundred in a directory."""
    content = bytes(range(256)) * 4
    for directory in range(FILES // PER_DIRECTORY):
        os.mkdir(f"{root}/{directory}")
    for name in names(root):
        with open(name, "xb", buffering=0) as file:
            file.write(content)


def stat(root, _):
    """Their attributes."""
    for name in names(root):
        assert os.stat(name).st_size == 1024


def delete(root, _):
    """All of them, and their directories."""
    for name in names(root):
        os.unlink(name)
    for directory in range(FILES // PER_DIRECTORY):
        os.rmdir(f"{root}/{directory}")


def untar(root, inputs):
    """100 MB in 10,000 files."""
    run(["tar", "-C", root, "-xf", f"{inputs}/files.tar"])


def pip(root, inputs):
    """numpy and pandas, from wheels that are here."""
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir", "--no-warn-script-location"]
    source = ["--no-index", "--find-links", f"{inputs}/wheels", "--target", f"{root}/packages"]
    run([sys.executable, "-m", "pip", "install", *quiet, *source, "numpy", "pandas"])


def write(root, _):
    """1 GiB in pieces of 1 MiB, and fsync."""
    piece = os.urandom(MIB)
    with open(f"{root}/big", "xb", buffering=0) as file:
        for _ in range(1024):
            assert file.write(piece) == MIB
        os.fsync(file.fileno())


def read(root, _):
    """The same, from front to back."""
    with open(f"{root}/big", "rb", buffering=0) as file:
        total = 0
        while piece := file.read(MIB):
            total += len(piece)
    assert total == 1024 * MIB


def append(root, _):
    """One byte to a file of 485 MiB that is below the layer."""
    with open(f"{root}/../large", "ab", buffering=0) as file:
        file.write(b"x")


def run(command):
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def main():
    root, inputs = sys.argv[1:]
    os.mkdir(root)
    works = {work.__name__: work for work in (create, stat, delete, untar, pip, write, read, append)}
    for line in sys.stdin:
        try:
            start = time.monotonic()
            works[line.strip()](root, inputs)
            answer = {"seconds": time.monotonic() - start}
        except (OSError, AssertionError, subprocess.SubprocessError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
