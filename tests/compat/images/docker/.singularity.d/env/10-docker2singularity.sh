#!/bin/sh
export PATH="/opt/conda/bin:/usr/bin:/bin"
export FROM_DOCKER="${FROM_DOCKER:-"value of the image"}"
export LANG="${LANG:-"C.UTF-8"}"
