#!/bin/sh

SCIF_APPNAME=bar
SCIF_APPROOT="/scif/apps/bar"
SCIF_APPMETA="/scif/apps/bar/scif"
SCIF_DATA="/scif/data"
SCIF_APPDATA="/scif/data/bar"
SCIF_APPINPUT="/scif/data/bar/input"
SCIF_APPOUTPUT="/scif/data/bar/output"
export SCIF_APPDATA SCIF_APPNAME SCIF_APPROOT SCIF_APPMETA SCIF_APPINPUT SCIF_APPOUTPUT SCIF_DATA
