#!/bin/sh
# Custom environment shell code should follow

export FROM_IMAGE=image
export EMPTY_IN_IMAGE=
export WITH_SPACES="two  spaces"
export DEFAULTED="${DEFAULTED:-by the image}"
export PATH="/data/bin:$PATH"
