#!/bin/sh
for script in /.singularity.d/env/*.sh; do
    [ ! -f "$script" ] || . "$script"
done
test=/.singularity.d/test
if [ -n "${SINGULARITY_APPNAME:-}" ]; then
    test="/scif/apps/$SINGULARITY_APPNAME/scif/test"
fi
if [ -x "$test" ]; then
    exec "$test" "$@"
fi
echo "No test found in container" >&2
