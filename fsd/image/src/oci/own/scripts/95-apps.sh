#!/bin/sh
# Where --app names an app of the image: its programs, libraries and environment.
if [ -n "${SINGULARITY_APPNAME:-}" ]; then
    export SINGULARITY_APPNAME
    SCIF_APPS=/scif/apps
    SCIF_APPROOT="$SCIF_APPS/$SINGULARITY_APPNAME"
    if [ ! -d "$SCIF_APPROOT" ]; then
        echo "Could not locate the container application: $SINGULARITY_APPNAME" >&2
        exit 1
    fi
    export SCIF_APPS SCIF_APPROOT
    PATH="$SCIF_APPROOT:$PATH"
    if [ -d "$SCIF_APPROOT/bin" ]; then
        PATH="$SCIF_APPROOT/bin:$PATH"
    fi
    if [ -d "$SCIF_APPROOT/lib" ]; then
        LD_LIBRARY_PATH="$SCIF_APPROOT/lib:${LD_LIBRARY_PATH:-}"
        export LD_LIBRARY_PATH
    fi
    for script in 01-base.sh 90-environment.sh; do
        if [ -f "$SCIF_APPROOT/scif/env/$script" ]; then
            . "$SCIF_APPROOT/scif/env/$script"
        fi
    done
    export PATH
fi
