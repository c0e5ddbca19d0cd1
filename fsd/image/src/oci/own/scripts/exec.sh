#!/bin/sh
for script in /.singularity.d/env/*.sh; do
    [ ! -f "$script" ] || . "$script"
done
exec "$@"
