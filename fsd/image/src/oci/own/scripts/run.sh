#!/bin/sh
# Every action sets the environment of the image first.
for script in /.singularity.d/env/*.sh; do
    [ -f "$script" ] && . "$script"
done

app=${APPTAINER_APPNAME:-${SINGULARITY_APPNAME:-}}
script=/.singularity.d/runscript
[ -n "$app" ] && script="/scif/apps/$app/scif/runscript"
[ -x "$script" ] && exec "$script" "$@"
if [ -n "$app" ]; then
    echo "No runscript found for the app $app" >&2
    exit 1
fi
echo "No runscript found in container, executing /bin/sh" >&2
exec /bin/sh "$@"
