#!/usr/bin/env bash
# Shows Siphon at work, from nothing: installs what is missing, builds, and runs demo/steps.sh as an unprivileged user in
# a directory that is gone afterwards. `make demo` calls this. PROFILE is what cargo builds, `release` unless told otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."

bash tests/setup
echo "building siphon"
profile=${PROFILE:-release}
cargo build --profile "$profile" --quiet
binary=${CARGO_TARGET_DIR:-target}/${profile/#dev/debug}/siphon

directory=$(mktemp -d /tmp/siphon-demo.XXXXXX)
trap 'rm -rf --one-file-system "$directory"' EXIT
# The checkout may lie where an unprivileged user cannot go.
cp "$binary" demo/steps.sh demo/serve.py "$directory"
chmod 755 "$directory"

run=(env -i "PATH=$directory:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" "HOME=$directory/home" LANG=C.UTF-8 "TERM=${TERM:-dumb}"
    "SIPHON_CACHEDIR=$directory/cache" "SIPHON_RUNTIME_DIR=$directory/run" SIPHON_IDLE_SECONDS=3)
if [ "$(id -u)" = 0 ]; then
    chown siphon-test: "$directory"
    run=(setpriv --reuid siphon-test --regid siphon-test --init-groups "${run[@]}" USER=siphon-test)
else
    run+=("USER=$(id -un)")
fi
"${run[@]}" bash "$directory/steps.sh"
