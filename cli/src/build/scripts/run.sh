#!/bin/sh
# Every action sets the environment of the image first.
for script in /.singularity.d/env/*.sh; do
    [ ! -f "$script" ] || . "$script"
done

app=${APPTAINER_APPNAME:-${SINGULARITY_APPNAME:-}}
if [ -n "$app" ]; then
    script="/scif/apps/$app/scif/runscript"
    [ -x "$script" ] && exec "$script" "$@"
    echo "The image has no runscript for the app $app" >&2
    exit 1
fi
[ -x /.singularity.d/runscript ] && exec /.singularity.d/runscript "$@"
echo "The image has no runscript, executing /bin/sh" >&2
exec /bin/sh "$@"
