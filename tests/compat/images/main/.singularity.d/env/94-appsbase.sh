## App Global Exports For: foo

SCIF_APPDATA_foo=/scif/data/foo
SCIF_APPMETA_foo=/scif/apps/foo/scif
SCIF_APPROOT_foo=/scif/apps/foo
SCIF_APPBIN_foo=/scif/apps/foo/bin
SCIF_APPLIB_foo=/scif/apps/foo/lib

export SCIF_APPDATA_foo SCIF_APPMETA_foo SCIF_APPROOT_foo SCIF_APPBIN_foo SCIF_APPLIB_foo
export SCIF_APPENV_foo="/scif/apps/foo/scif/env/90-environment.sh"
export SCIF_APPLABELS_foo="/scif/apps/foo/scif/labels.json"
export SCIF_APPRUN_foo="/scif/apps/foo/scif/runscript"
