#!/bin/sh
# Every action sets the environment of the image first.
for script in /.singularity.d/env/*.sh; do
    [ -f "$script" ] && . "$script"
done

app=${APPTAINER_APPNAME:-${SINGULARITY_APPNAME:-}}
script=/.singularity.d/test
[ -n "$app" ] && script="/scif/apps/$app/scif/test"
[ -x "$script" ] && exec "$script" "$@"
if [ -n "$app" ]; then
    echo "No test found for the app $app" >&2
    exit 1
fi
echo "No test found in container" >&2
