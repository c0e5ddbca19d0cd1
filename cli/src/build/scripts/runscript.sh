#!/bin/sh

echo "There is no runscript defined for this container"
