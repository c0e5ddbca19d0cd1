#!/bin/sh
for script in /.singularity.d/env/*.sh; do
    [ ! -f "$script" ] || . "$script"
done
if [ -x /.singularity.d/startscript ]; then
    exec /.singularity.d/startscript "$@"
fi
