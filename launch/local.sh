#!/usr/bin/env bash
# Trains with COUNT processes on this machine, each on its own accelerator, as several hosts do.
#
#   [CONFIG=... RUN=... DATA=... ACCELERATOR=cpu|cuda COUNT=2 PORT=8476] launch/local.sh [--dry-run]
set -euo pipefail
if [ "${1:-}" = --dry-run ]; then
  DRY_RUN=1
  shift
fi
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
[ $# -eq 0 ] || fail "$1: takes only --dry-run; everything else is set by variables"
: "${PORT:=8476}"
case $ACCELERATOR in cpu | cuda) ;; *) fail "ACCELERATOR=$ACCELERATOR: must be cpu or cuda" ;; esac

link_data
train_command
export JAX_PLATFORMS=$ACCELERATOR # so that a missing accelerator is an error
started=()
# A process that receives a signal informs the others; this sends it to all of them.
trap 'kill -TERM "${started[@]}" 2>/dev/null || true' TERM INT USR1
for ((process = 0; process < COUNT; process++)); do
  place=()
  if [ "$COUNT" -gt 1 ]; then
    place=(--coordinator "localhost:$PORT" --processes "$COUNT" --process "$process")
    if [ "$ACCELERATOR" = cuda ]; then export CUDA_VISIBLE_DEVICES=$process; fi
  fi
  if [ -n "${DRY_RUN:-}" ]; then
    run "${command[@]}" "${place[@]}"
  else
    "${command[@]}" "${place[@]}" &
    started+=($!)
  fi
done

worst=0
for process in "${started[@]}"; do
  status=0
  # A trapped signal ends `wait`, not the process.
  while wait "$process" || status=$?; [ "$status" -gt 128 ] && kill -0 "$process" 2>/dev/null; do
    status=0
  done
  if [ "$status" -gt "$worst" ]; then worst=$status; fi
done
exit "$worst"
