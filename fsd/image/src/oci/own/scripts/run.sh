#!/bin/sh
for script in /.singularity.d/env/*.sh; do
    [ ! -f "$script" ] || . "$script"
done
runscript=/.singularity.d/runscript
if [ -n "${SINGULARITY_APPNAME:-}" ]; then
    runscript="/scif/apps/$SINGULARITY_APPNAME/scif/runscript"
fi
if [ -x "$runscript" ]; then
    exec "$runscript" "$@"
fi
echo "No runscript found in container, executing /bin/sh" >&2
exec /bin/sh "$@"
