#!/bin/sh

SCIF_APPNAME=foo
SCIF_APPROOT="/scif/apps/foo"
SCIF_APPMETA="/scif/apps/foo/scif"
SCIF_DATA="/scif/data"
SCIF_APPDATA="/scif/data/foo"
SCIF_APPINPUT="/scif/data/foo/input"
SCIF_APPOUTPUT="/scif/data/foo/output"
export SCIF_APPDATA SCIF_APPNAME SCIF_APPROOT SCIF_APPMETA SCIF_APPINPUT SCIF_APPOUTPUT SCIF_DATA
