#!/usr/bin/env bash
# Compares mounts of one squashfs image as whole processes: kernel (root only), squashfuse_ll if it is there, siphon.
#   compare.sh [IMAGE]     IMAGE: a raw squashfs or a SIF. Without one, an image of this machine's /usr/lib and
#                          /usr/share is made, which is a few hundred MiB of small and large files.
#   RUNS=5                 how often each measurement is repeated; the median counts.
# As root, "cold" drops the page cache before each run and mounts anew; otherwise only warm runs are measured.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${RUNS:-5}

for tool in mksquashfs unsquashfs fusermount3; do
    command -v "$tool" >/dev/null || { bash tests/setup; break; }
done
cargo build --release --quiet
siphon=$(readlink -f "${CARGO_TARGET_DIR:-target}/release/siphon")

directory=$(mktemp -d /var/tmp/siphon-bench.XXXXXX)
mounted=$directory/mounted
mkdir "$mounted"
unmount() { if mountpoint -q "$mounted"; then "unmount_$1"; fi; }
finish() {
    if mountpoint -q "$mounted"; then umount "$mounted" 2>/dev/null || fusermount3 -u "$mounted"; fi
    rm -rf --one-file-system "$directory"
}
trap finish EXIT

image=${1:-}
if [ -z "$image" ]; then
    image=$directory/image.sqfs
    echo "making an image of /usr/lib and /usr/share" >&2
    mksquashfs /usr/lib /usr/share "$image" -comp zstd -all-root -quiet -no-progress >/dev/null
fi
image=$(readlink -f "$image")

# Where the squashfs begins: at its magic. In a SIF it is aligned to pages.
offset=$(python3 - "$image" <<'PYTHON'
import sys
with open(sys.argv[1], "rb") as file:
    head = file.read(16 << 20)
print(next((at for at in range(0, len(head), 4096) if head[at:at + 4] == b"hsqs"), ""))
PYTHON
)
[ -n "$offset" ] || { echo "no squashfs found in $image" >&2; exit 1; }

export SIPHON_RUNTIME_DIR=$directory/run SIPHON_CACHEDIR=$directory/cache
mkdir -m 700 "$SIPHON_RUNTIME_DIR"

mount_kernel() { mount -t squashfs -o "loop,ro,offset=$offset" "$image" "$mounted"; }
unmount_kernel() { umount "$mounted"; }
mount_squashfuse() { squashfuse_ll -o "offset=$offset" "$image" "$mounted"; }
unmount_squashfuse() { fusermount3 -u "$mounted"; }
mount_siphon() { "$siphon" -q mount "$image" "$mounted"; }
unmount_siphon() { "$siphon" umount "$mounted"; }

# To a pipe, since tar does not read at all where its output is /dev/null.
work_tar() { tar -C "$mounted" -cf - . 2>/dev/null | cat >/dev/null; }
work_find() { find "$mounted" -ls >/dev/null; }

peers=(siphon)
if command -v squashfuse_ll >/dev/null; then peers=(squashfuse "${peers[@]}"); else echo "no squashfuse_ll here: left out" >&2; fi
caches=(warm)
if [ "$(id -u)" = 0 ]; then peers=(kernel "${peers[@]}"); caches=(cold warm); else echo "not root: no kernel mount, no cold runs" >&2; fi

drop_caches() { sync; echo 3 >/proc/sys/vm/drop_caches; }

milliseconds() { # WORK
    local start
    start=$(date +%s%N)
    "work_$1"
    echo $((($(date +%s%N) - start) / 1000000))
}

median() { sort -n | awk '{ value[NR] = $1 } END { print value[int((NR + 1) / 2)] }'; }

measure() { # PEER WORK CACHE
    [ "$3" = cold ] || { "mount_$1"; "work_$2"; }
    local run
    for run in $(seq "$runs"); do
        if [ "$3" = cold ]; then unmount "$1"; drop_caches; "mount_$1"; fi
        milliseconds "$2"
    done | median
    unmount "$1"
}

echo "image: $image, $(($(stat -c %s "$image") / 1048576)) MiB; $(nproc) cores, kernel $(uname -r); median of $runs runs"
printf '%-6s %-6s' work cache
printf ' %22s' "${peers[@]}"
echo
for work in tar find; do
    for cache in "${caches[@]}"; do
        printf '%-6s %-6s' "$work" "$cache"
        base=
        for peer in "${peers[@]}"; do
            time=$(measure "$peer" "$work" "$cache")
            base=${base:-$time}
            printf ' %22s' "$(awk -v time="$time" -v base="$base" 'BEGIN { printf "%d ms (%.2fx)", time, base ? time / base : 1 }')"
        done
        echo
    done
done
