# shellcheck shell=bash
# The variables that all scripts of this folder read. They source this file in the repository root.

: "${CONFIG:=configs/quickstart.py}"           # what to train
: "${RUN:=runs/$(basename "${CONFIG%.*}")}"    # run directory, shared by all processes
: "${DATA:=}"                                  # folder that holds the config's data/...
: "${ACCELERATOR:=cpu}"                        # see launch/README.md for each launcher
: "${COUNT:=1}"                                # number of processes, hosts or slices
: "${CHECKPOINTS:=}"                           # bucket for checkpoints, gs://BUCKET/RUN; empty: RUN
: "${OPTIONS:=}"                               # further options of train, --FIELD VALUE
: "${PYTHON:=python3}"
export CONFIG RUN DATA ACCELERATOR COUNT CHECKPOINTS OPTIONS PYTHON

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

[ -f "$CONFIG" ] || fail "CONFIG=$CONFIG: no such file; run this in the repository root"
[[ "$COUNT" =~ ^[1-9][0-9]*$ ]] || fail "COUNT=$COUNT: must be a whole number from 1"
[[ "$RUN" != *://* ]] || fail "RUN=$RUN: must be a folder; set CHECKPOINTS to a bucket"

# Sets `command` to an array, as paths may contain spaces; OPTIONS are split into words.
train_command() {
  read -rd '' -a further <<<"$OPTIONS" || true # read fails at the end of its input
  command=("$PYTHON" -m asr_jax train "$CONFIG" --run "$RUN")
  if [ -n "$CHECKPOINTS" ]; then command+=(--checkpoint.directory "$CHECKPOINTS"); fi
  command+=("${further[@]}")
}

# Runs a command; with --dry-run prints it, quoted for a shell.
run() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Links data, which the configs name, to DATA.
link_data() {
  if [ -n "$DATA" ] && ! [ data -ef "$DATA" ]; then
    [ -n "${DRY_RUN:-}" ] || [ -d "$DATA" ] || fail "DATA=$DATA: no such folder"
    [ ! -e data ] || [ -L data ] || fail "DATA=$DATA: there is already another folder named data"
    run ln -sfn "$DATA" data
  fi
}
