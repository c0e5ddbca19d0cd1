#!/bin/sh
# The environment of the app that was asked for.
scif_app=${APPTAINER_APPNAME:-${SINGULARITY_APPNAME:-}}
if [ -n "$scif_app" ]; then
    scif_root="/scif/apps/$scif_app"
    if [ ! -d "$scif_root" ]; then
        echo "Could not locate the container application: $scif_app" >&2
        exit 1
    fi
    SCIF_APPS=/scif/apps
    SCIF_APPROOT=$scif_root
    export SCIF_APPS SCIF_APPROOT
    PATH="$scif_root:$PATH"
    [ -d "$scif_root/bin" ] && PATH="$scif_root/bin:$PATH"
    export PATH
    if [ -d "$scif_root/lib" ]; then
        LD_LIBRARY_PATH="$scif_root/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
        export LD_LIBRARY_PATH
    fi
    [ -f "$scif_root/scif/env/01-base.sh" ] && . "$scif_root/scif/env/01-base.sh"
    [ -f "$scif_root/scif/env/90-environment.sh" ] && . "$scif_root/scif/env/90-environment.sh"
    unset scif_root
fi
unset scif_app
