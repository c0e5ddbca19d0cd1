"""What a file tree holds, for comparing it with others: `listing.py START` says what `/` is, run inside of it.

A line of JSON for each name: kind, mode, owner, length, digest of the content, target, extended attributes, other names of the same
file, and the time of the last change if that is before START (seconds since 1970). Directories' lengths and link counts are their
filesystem's own affair. `listing.py compare LIST LIST` says what is different between two such lists.
"""

import hashlib
import json
import os
import re
import stat
import sys

# What holds times, random numbers or inode numbers: that it is there is compared, not what is in it.
VARYING = re.compile(
    r"/__pycache__/|/\.git/index$|/\.git/logs/|^/var/log/|^/var/cache/|^/var/lib/apt/|^/etc/machine-id$|\.log$"
    r"|^/var/lib/systemd/catalog/"
)


def mounts():
    """Where something else is mounted: not part of the tree."""
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        points = {line.split()[4].replace("\\040", " ") for line in lines}
    return points - {"/"}


def entry(path, start, names):
    found = os.lstat(path)
    is_directory = stat.S_ISDIR(found.st_mode)
    seen = {
        "mode": oct(found.st_mode), "owner": [found.st_uid, found.st_gid],
        "mtime": found.st_mtime_ns if found.st_mtime < start else "new",
        "xattrs": {name: os.getxattr(path, name, follow_symlinks=False).hex()
                   for name in sorted(os.listxattr(path, follow_symlinks=False))},
    }
    if path == "/":
        # A layer's root is as old as the layer.
        del seen["mtime"]
    if not is_directory:
        seen["links"] = found.st_nlink
        if found.st_nlink > 1:
            seen["first"] = names.setdefault((found.st_dev, found.st_ino), path)
    if stat.S_ISLNK(found.st_mode):
        seen["target"] = os.readlink(path)
    elif stat.S_ISREG(found.st_mode) and not VARYING.search(path):
        seen["length"] = found.st_size
        with open(path, "rb") as file:
            seen["digest"] = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    elif stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
        seen["device"] = found.st_rdev
    return seen


def show(start):
    mounted = mounts()
    print(json.dumps({"mounted": sorted(mounted)}))
    names, pending = {}, ["/"]
    while pending:
        path = pending.pop()
        if path in mounted:
            continue
        seen = entry(path, start, names)
        print(json.dumps([path, seen], sort_keys=True))
        if stat.S_ISDIR(os.lstat(path).st_mode):
            inside = sorted(os.listdir(path), reverse=True)
            pending.extend(os.path.join(path, name) for name in inside)


def read(name):
    with open(name, encoding="utf-8") as lines:
        mounted = json.loads(next(lines))["mounted"]
        return set(mounted), dict(json.loads(line) for line in lines)


def compare(one, other):
    (mounted, ones), (elsewhere, others) = read(one), read(other)
    # What one side mounts on, or has for that, is no part of either.
    points = mounted | elsewhere
    differences, fields = [], {}
    for path in sorted(ones.keys() | others.keys()):
        if any(path == point or path.startswith(point + "/") for point in points):
            continue
        here, there = ones.get(path), others.get(path)
        if here is None or there is None:
            differences.append(f"{path}: only in {one if here else other}")
            continue
        changed = [field for field in sorted(here.keys() | there.keys()) if here.get(field) != there.get(field)]
        for field in changed:
            fields[field] = fields.get(field, 0) + 1
        if changed:
            values = ", ".join(f"{field} {here.get(field)} / {there.get(field)}" for field in changed)
            differences.append(f"{path}: {values}")
    print("\n".join(differences))
    print(f"{one}, {other}: {len(ones)} and {len(others)} names, {len(differences)} differences {fields or ''}", file=sys.stderr)
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    if sys.argv[1] == "compare":
        compare(*sys.argv[2:])
    else:
        show(float(sys.argv[1]))
