#!/usr/bin/env bash
# The demo itself, in the directory that this file lies in. demo.sh prepares that directory and calls this as an
# unprivileged user. Every command that a user would type is printed before it runs.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p home cache run served state
chmod 700 run

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# Prints a command as it would be typed, then runs it.
show() {
    local word line='$'
    for word in "$@"; do
        if [[ $word == *[^A-Za-z0-9_./:=-]* ]]; then line+=" '$word'"; else line+=" $word"; fi
    done
    echo "$line"
    "$@"
}

mebibytes() { awk -v bytes="$1" 'BEGIN { printf "%.1f MiB", bytes / 1048576 }'; }

processes() { pgrep -f "$PWD/run" || true; }

# Daemons leave by themselves when idle; one that does not is a failure, and is ended.
finish() {
    local code=$?
    [ -z "${server:-}" ] || kill "$server"
    for _ in $(seq 150); do [ -n "$(processes)" ] || break; sleep 0.1; done
    if [ -n "$(processes)" ] || grep -q "$PWD" /proc/self/mountinfo; then
        echo "demo: siphon left something behind" >&2
        processes | xargs -r kill -9
        exit 1
    fi
    exit "$code"
}
trap finish EXIT

# The image is this machine's own Debian or Ubuntu: the installed files of a few packages and of all that they depend on.
make_root() {
    local packages
    packages=$(apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
        --no-enhances bash coreutils dash python3 gcc libc-bin | grep '^[a-z0-9]' | sort -u)
    mkdir -p root/usr/{bin,sbin,lib,lib64} root/{etc,tmp,proc,sys,dev,root} root/.singularity.d/env
    local name
    for name in bin sbin lib lib64; do ln -s "usr/$name" "root/$name"; done
    # Some listed files may be missing, since dpkg can be told to leave out documentation.
    # shellcheck disable=SC2086
    dpkg-query --listfiles $packages 2>/dev/null | sed -n 's,^/\([^.]\),\1,p' | sort -u |
        tar --create --directory / --no-recursion --ignore-failed-read --files-from - 2>/dev/null |
        tar --extract --directory root --keep-directory-symlink --no-same-owner || true
    chmod -R u+w root
    [ -e root/usr/bin/sh ] || ln -s dash root/usr/bin/sh
    printf 'root:x:0:0:root:/root:/bin/bash\n' >root/etc/passwd
    printf 'root:x:0:\n' >root/etc/group
    printf '#!/bin/sh\nexport MADE_BY=siphon\n' >root/.singularity.d/env/90-environment.sh
    printf '#!/bin/sh\nexec python3 "$@"\n' >root/.singularity.d/runscript
    chmod 755 root/.singularity.d/runscript root/.singularity.d/env/90-environment.sh
}

say "1. A directory becomes an image"
make_root
show siphon build served/debian.sif root
rm -rf root
size=$(stat -c %s served/debian.sif)

python3 serve.py served state &
server=$!
for _ in $(seq 100); do [ -e state/port ] && break; sleep 0.1; done
url=http://127.0.0.1:$(cat state/port)/debian.sif

say "2. The image runs from a web server, without being downloaded"
show siphon exec "$url" python3 -c 'import json, sys; print(json.dumps({"python": sys.version.split()[0], "from": "a web server"}))'
sent=$(cat state/sent)
show siphon status
echo "the server sent $(mebibytes "$sent") of an image of $(mebibytes "$size")"
[ "$sent" -lt $((size * 3 / 4)) ] || { echo "demo: that is not lazy" >&2; exit 1; }

say "3. A second run joins the mount of the first"
show siphon exec "$url" bash -c 'echo "I am $(id -un), and $MADE_BY made this"'

say "4. A sandbox is a layer over the image, made at once"
show siphon build --sandbox work "$url"
show siphon exec --writable work bash -c 'mkdir /dataset && echo "print(6 * 7)" > /dataset/answer.py && rm -r /usr/share/doc'
echo "the sandbox takes $(mebibytes "$(du -sB1 work | cut -f1)") on disk"

say "5. Image and layer become a new image"
show siphon commit work final.sif

say "6. The new image runs"
show siphon run final.sif /dataset/answer.py
show siphon ls final.sif /dataset
[ "$(siphon run final.sif /dataset/answer.py)" = 42 ]
say "Done; all of this is gone when the prompt is back."
