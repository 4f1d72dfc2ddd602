#!/usr/bin/env bash
# Trains on a TPU slice of one host (v5litepod-8, v6e-8 and smaller): asks for it until it is there,
# copies this checkout to it, trains, follows, and begins again when the slice is preempted.
#
#   NAME=... ZONE=... ACCELERATOR=v5litepod-8 RUNTIME=v2-alpha-tpuv5-lite CONFIG=... \
#     DATA=gs://BUCKET/data CHECKPOINTS=gs://BUCKET/RUN [SPOT=1] launch/tpu_vm.sh [--dry-run] train
#   ... launch/tpu_vm.sh [--dry-run] delete
#
# Checkpoints go to CHECKPOINTS; the run's small files are copied there when training ends.
set -euo pipefail
if [ "${1:-}" = --dry-run ]; then
  DRY_RUN=1
  shift
fi
if [ "${ACCELERATOR:-cpu}" = cpu ]; then ACCELERATOR=v5litepod-8; fi
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
: "${NAME:=asr-jax}" "${ZONE:=}" "${RUNTIME:=v2-alpha-tpuv5-lite}" "${SPOT:=}"
[ -n "$ZONE" ] || fail "ZONE: say which, such as us-central1-a"
[[ "$ACCELERATOR" =~ -(1|4|8)$ ]] ||
  fail "ACCELERATOR=$ACCELERATOR: must be of one host, such as v5litepod-8; more need a run directory that all hosts see"

resources=(gcloud compute tpus queued-resources)
ssh=(gcloud compute tpus tpu-vm ssh "$NAME" "--zone=$ZONE" --command)

state() {
  if [ -n "${DRY_RUN:-}" ]; then return; fi
  "${resources[@]}" describe "$NAME" "--zone=$ZONE" '--format=value(state.state)' 2>/dev/null || true
}

create() {
  local kind=()
  if [ -n "$SPOT" ]; then kind=(--spot); fi
  run "${resources[@]}" create "$NAME" "--node-id=$NAME" "--zone=$ZONE" \
    "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME" "${kind[@]}"
  if [ -n "${DRY_RUN:-}" ]; then return; fi
  while :; do
    case $(state) in
      ACTIVE) break ;;
      FAILED | SUSPENDED) fail "$NAME: the request for $ACCELERATOR in $ZONE ended as $(state)" ;;
    esac
    sleep "${POLL_SECONDS:-30}"
  done
}

delete() {
  run "${resources[@]}" delete "$NAME" "--zone=$ZONE" --force --quiet
}

train() {
  PYTHON=env/bin/python
  train_command
  local data="" files=""
  if [ -n "$DATA" ]; then
    data="mkdir -p data && gcloud storage rsync -r $(printf %q "$DATA") data && "
  fi
  if [ -n "$CHECKPOINTS" ]; then
    files="; status=\$?; gcloud storage rsync -r -x '^compiled/' $(printf %q "$RUN") $(printf %q "$CHECKPOINTS"); exit \$status"
  fi
  run tar czf "$code" asr_jax configs samples pyproject.toml requirements.txt README.md LICENSE &&
    run gcloud compute tpus tpu-vm scp "$code" "$NAME:code.tar.gz" "--zone=$ZONE" &&
    run "${ssh[@]}" "mkdir -p asr && cd asr && tar xzf ../code.tar.gz && python3 -m venv env && \
env/bin/pip install -q '.[tpu,gcs]' && ${data}JAX_PLATFORMS=tpu,cpu $(printf '%q ' "${command[@]}")$files"
}

case ${1:-} in
  delete) delete ;;
  train)
    code=$(mktemp)
    trap 'rm -f "$code"' EXIT
    if [ "$(state)" != ACTIVE ]; then create; fi
    until train; do
      # An error of ours would only repeat itself; a slice that is gone is asked for again.
      [ "$(state)" != ACTIVE ] || fail "training ended with an error, and the slice is still there"
      echo "the slice was preempted; asking for another" >&2
      delete
      create
    done
    ;;
  *) fail "needs train or delete" ;;
esac
