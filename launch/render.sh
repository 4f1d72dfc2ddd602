#!/usr/bin/env bash
# Print a manifest of launch/untested/ with the variables filled in, for kubectl or gcloud:
#
#   CONFIG=... ACCELERATOR=... COUNT=... IMAGE=... BUCKET=... launch/render.sh MANIFEST | kubectl apply -f -
set -euo pipefail
if [ "${1:-}" = --dry-run ]; then shift; fi # it never does anything else
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
if [ $# -ne 1 ] || ! [ -f "$1" ]; then
  fail "needs a manifest, such as launch/untested/kubernetes/gpu.jobset.yaml"
fi
if [[ "$RUN" != /bucket/* && "$RUN" != /gcs/* ]]; then
  fail "RUN=$RUN: must be /bucket/RUN, or /gcs/BUCKET/RUN on Vertex AI; other folders are lost with the machine"
fi
: "${NAME:=asr-jax}" "${SLICES:=1}"
if [ -n "$CHECKPOINTS" ]; then OPTIONS="--checkpoint.directory $CHECKPOINTS $OPTIONS"; fi
export NAME SLICES OPTIONS
"$PYTHON" - "$1" <<'END'
import os, string, sys

try:
    print(string.Template(open(sys.argv[1]).read()).substitute(os.environ), end="")
except KeyError as missing:
    sys.exit(f"render.sh: {sys.argv[1]}: needs the variable {missing.args[0]}")
END
