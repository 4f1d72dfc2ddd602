#!/usr/bin/env bash
# Trains on COUNT Cloud TPU slices with one host or several: requests them until they are granted,
# copies this checkout to every host, trains, follows the first host's log, and starts over when the
# slices are preempted. Training does not need this terminal: another `train` follows the log again.
#
#   NAME=... ZONE=... ACCELERATOR=v5litepod-8 COUNT=1 BUCKET=... CONFIG=... DATA=gs://BUCKET/data \
#     [RUN=bucket/runs/NAME SPOT=1 RUNTIME=...] launch/tpu_vm.sh [--dry-run] train
#   ... launch/tpu_vm.sh [--dry-run] stop | delete
#
# BUCKET is mounted as the folder bucket on every host; it stores RUN.
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
[ -n "$ZONE" ] || fail "ZONE: must be set, such as us-central1-a"
[ $# -le 1 ] || fail "$2: nothing may follow train, stop or delete (--dry-run comes first)"
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

# Runs tpu_host.sh with arguments on all hosts, or on the first (0).
on() {
  run "${resources[@]}" ssh "$NAME" "--zone=$ZONE" "--node=$1" "--worker=$1" \
    "--command=${unpack:-}cd asr && launch/tpu_host.sh $(printf '%q ' "${@:2}")"
}

copy() {
  run tar cf "$code" asr_jax configs samples launch pyproject.toml requirements.txt README.md LICENSE &&
    run "${resources[@]}" scp "$code" "$NAME:code.tar" "--zone=$ZONE" --node=all --worker=all &&
    unpack="mkdir -p asr && tar xf code.tar -C asr && " on all setup "$BUCKET" "$DATA"
}

# Tries a command up to four times; returns 1 when the slices are gone meanwhile.
insist() {
  local problem=$1
  shift
  for _ in 1 2 3 4; do
    if "$@"; then return; fi
    [ "$(state)" = ACTIVE ] || return 1
    sleep "$POLL_SECONDS"
  done
  fail "$NAME: $problem, and the slices are still allocated"
}

# Follows the log until the training ends; returns 1 when it must start over.
follow() {
  local outcome
  while :; do
    on 0 follow || true # ends with the training, or with the connection
    if [ -n "${DRY_RUN:-}" ]; then return; fi
    outcome=$(on 0 status | tail -n 1) || true
    case $outcome in
      0) return ;;
      stopped) fail "$NAME: the training was stopped; the slices are still allocated" ;;
      running) ;;
      "") [ "$(state)" = ACTIVE ] || return 1 ;; # the host does not answer
      gone | 138 | 143) return 1 ;;              # its machine went down, or stopped it
      # A host may have been lost before the state of the slices shows it.
      *) insist "training ended with status $outcome" false || return 1 ;;
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
    [ -n "$BUCKET" ] || fail "BUCKET: must be set; it stores the run"
    [[ "$RUN" == bucket/* ]] || fail "RUN=$RUN: must be bucket/..., where BUCKET is mounted"
    PYTHON=env/bin/python
    train_command
    code=$(mktemp)
    trap 'rm -f "$code"' EXIT
    if [ "$(state)" != ACTIVE ]; then
      create
    elif [ "$(on 0 status | tail -n 1)" = running ]; then
      echo "already training: following its log (tpu_vm.sh stop ends it)" >&2
      if follow; then exit; fi
    fi
    until train; do
      if [ "$(state)" = ACTIVE ]; then
        echo "the hosts were restarted; restarting the training" >&2
      else
        echo "the slices were preempted; requesting new ones" >&2
        delete
        create
      fi
    done
    ;;
  *) fail "needs train, stop or delete" ;;
esac
