#!/bin/sh
# Every action sets the environment of the image first.
for script in /.singularity.d/env/*.sh; do
    [ ! -f "$script" ] || . "$script"
done

app=${APPTAINER_APPNAME:-${SINGULARITY_APPNAME:-}}
if [ -n "$app" ]; then
    script="/scif/apps/$app/scif/test"
    [ -x "$script" ] && exec "$script" "$@"
    echo "The image has no test for the app $app" >&2
    exit 1
fi
[ -x /.singularity.d/test ] && exec /.singularity.d/test "$@"
exit 0
