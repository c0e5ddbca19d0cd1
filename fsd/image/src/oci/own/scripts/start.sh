#!/bin/sh
# Every action sets the environment of the image first.
for script in /.singularity.d/env/*.sh; do
    [ -f "$script" ] && . "$script"
done

[ -x /.singularity.d/startscript ] && exec /.singularity.d/startscript "$@"
