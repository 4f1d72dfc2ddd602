#!/usr/bin/env bash
# Trains on COUNT Cloud TPU slices of one host or several: asks for them until they are there, copies
# this checkout to every host, trains, follows the first host's log, and begins again when they are
# preempted. The training does not need this terminal: `train` once more follows what runs.
#
#   NAME=... ZONE=... ACCELERATOR=v5litepod-8 COUNT=1 BUCKET=... CONFIG=... DATA=gs://BUCKET/data \
#     [RUN=bucket/runs/NAME SPOT=1 RUNTIME=...] launch/tpu_vm.sh [--dry-run] train
#   ... launch/tpu_vm.sh [--dry-run] stop | delete
#
# BUCKET is mounted as the folder bucket on every host, where RUN lies.
set -euo pipefail
if [ "${1:-}" = --dry-run ]; then
  DRY_RUN=1
  shift
fi
if [ "${ACCELERATOR:-cpu}" = cpu ]; then ACCELERATOR=v5litepod-8; fi
if [ -z "${RUN:-}" ]; then RUN=bucket/runs/$(basename "${CONFIG:-quickstart}" .py); fi
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
: "${NAME:=asr-jax}" "${ZONE:=}" "${BUCKET:=}" "${SPOT:=}" "${POLL_SECONDS:=30}"
case $ACCELERATOR in
  v6e-*) : "${RUNTIME:=v2-alpha-tpuv6e}" ;;
  v5p-*) : "${RUNTIME:=v2-alpha-tpuv5}" ;;
  v5litepod-*) : "${RUNTIME:=v2-alpha-tpuv5-lite}" ;;
  *) : "${RUNTIME:=tpu-ubuntu2204-base}" ;;
esac
[ -n "$ZONE" ] || fail "ZONE: say which, such as us-central1-a"
[ $# -le 1 ] || fail "$2: what is to be done comes last, after --dry-run"
BUCKET=${BUCKET#gs://}

resources=(gcloud compute tpus queued-resources)

state() {
  if [ -n "${DRY_RUN:-}" ]; then return; fi
  "${resources[@]}" describe "$NAME" "--zone=$ZONE" '--format=value(state.state)' 2>/dev/null || true
}

create() {
  local kind=("--node-id=$NAME")
  if [ "$COUNT" -gt 1 ]; then kind=("--node-count=$COUNT" "--node-prefix=$NAME"); fi
  if [ -n "$SPOT" ]; then kind+=(--spot); fi
  run "${resources[@]}" create "$NAME" "--zone=$ZONE" "--accelerator-type=$ACCELERATOR" \
    "--runtime-version=$RUNTIME" "${kind[@]}"
  if [ -n "${DRY_RUN:-}" ]; then return; fi
  while :; do
    case $(state) in
      ACTIVE) break ;;
      FAILED | SUSPENDED) fail "$NAME: the request for $ACCELERATOR in $ZONE ended as $(state)" ;;
    esac
    sleep "$POLL_SECONDS"
  done
}

delete() {
  run "${resources[@]}" delete "$NAME" "--zone=$ZONE" --force --quiet
}

# On all hosts, or the first (0): tpu_host.sh with arguments.
on() {
  run "${resources[@]}" ssh "$NAME" "--zone=$ZONE" "--node=$1" "--worker=$1" \
    "--command=${unpack:-}cd asr && launch/tpu_host.sh $(printf '%q ' "${@:2}")"
}

copy() {
  run tar cf "$code" asr_jax configs samples launch pyproject.toml requirements.txt README.md LICENSE &&
    run "${resources[@]}" scp "$code" "$NAME:code.tar" "--zone=$ZONE" --node=all --worker=all &&
    unpack="mkdir -p asr && tar xf code.tar -C asr && " on all setup "$BUCKET" "$DATA"
}

# Up to four times until it succeeds; 1 when the slices are gone meanwhile.
insist() {
  local complaint=$1
  shift
  for _ in 1 2 3 4; do
    if "$@"; then return; fi
    [ "$(state)" = ACTIVE ] || return 1
    sleep "$POLL_SECONDS"
  done
  fail "$NAME: $complaint, and the slices are still there"
}

# Until the training ends; 1 when it has to begin again.
follow() {
  local ended
  while :; do
    on 0 follow || true # ends with the training, or with the connection
    if [ -n "${DRY_RUN:-}" ]; then return; fi
    ended=$(on 0 status | tail -n 1) || true
    case $ended in
      0) return ;;
      stopped) fail "$NAME: the training was stopped; the slices are still there" ;;
      running) ;;
      "") [ "$(state)" = ACTIVE ] || return 1 ;; # not reached
      gone | 138 | 143) return 1 ;;              # its machine went down, or told it to stop
      # One of many may have been lost before that is known of all.
      *) insist "training ended with status $ended" false || return 1 ;;
    esac
    sleep "$POLL_SECONDS"
  done
}

train() {
  insist "the hosts could not be set up" copy &&
    insist "training could not be started" on all start "${command[@]}" &&
    follow
}

case ${1:-} in
  delete) delete ;;
  stop) on all stop ;;
  train)
    [ -n "$BUCKET" ] || fail "BUCKET: say which; the run is kept there"
    [[ "$RUN" == bucket/* ]] || fail "RUN=$RUN: must be bucket/..., as BUCKET is mounted there"
    PYTHON=env/bin/python
    train_command
    code=$(mktemp)
    trap 'rm -f "$code"' EXIT
    if [ "$(state)" != ACTIVE ]; then
      create
    elif [ "$(on 0 status | tail -n 1)" = running ]; then
      echo "already training there: what follows is its log; stop ends it" >&2
      if follow; then exit; fi
    fi
    until train; do
      if [ "$(state)" = ACTIVE ]; then
        echo "the hosts were started again; so is the training" >&2
      else
        echo "the slices were preempted; asking for others" >&2
        delete
        create
      fi
    done
    ;;
  *) fail "needs train, stop or delete" ;;
esac
