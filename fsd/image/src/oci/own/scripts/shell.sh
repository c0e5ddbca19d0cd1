#!/bin/sh
# Every action sets the environment of the image first.
for script in /.singularity.d/env/*.sh; do
    [ -f "$script" ] && . "$script"
done

shell=${APPTAINER_SHELL:-${SINGULARITY_SHELL:-}}
[ -n "$shell" ] && [ -x "$shell" ] && exec "$shell" "$@"
[ -x /bin/bash ] && exec /bin/bash --norc "$@"
exec /bin/sh "$@"
