#!/bin/sh
# Every action sets the environment of the image first.
for script in /.singularity.d/env/*.sh; do
    [ -f "$script" ] && . "$script"
done

exec "$@"
