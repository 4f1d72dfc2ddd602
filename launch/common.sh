# shellcheck shell=bash
# Sourced by the scripts beside it, in the repository's root: the variables that all of them read.

: "${CONFIG:=configs/quickstart.py}"           # what to train
: "${RUN:=runs/$(basename "${CONFIG%.*}")}"    # run directory, which every process must see
: "${DATA:=}"                                  # folder that the config's data/... lies in
: "${ACCELERATOR:=cpu}"                        # launch/README.md says what each launcher takes
: "${COUNT:=1}"                                # how many, likewise
: "${CHECKPOINTS:=}"                           # bucket for checkpoints, gs://BUCKET/RUN; else RUN
: "${OPTIONS:=}"                               # further options of train, --FIELD VALUE
: "${PYTHON:=python3}"
export CONFIG RUN DATA ACCELERATOR COUNT CHECKPOINTS OPTIONS PYTHON

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

[ -f "$CONFIG" ] || fail "CONFIG=$CONFIG: no such file; start this in the repository's root"
[[ "$COUNT" =~ ^[1-9][0-9]*$ ]] || fail "COUNT=$COUNT: must be a whole number from 1"
[[ "$RUN" != *://* ]] || fail "RUN=$RUN: must be a folder; a bucket goes into CHECKPOINTS"

# The command as an array: a path may hold spaces, OPTIONS are words.
train_command() {
  read -rd '' -a further <<<"$OPTIONS" || true # it reads to the end, which it calls a failure
  command=("$PYTHON" -m asr_jax train "$CONFIG" --run "$RUN")
  if [ -n "$CHECKPOINTS" ]; then command+=(--checkpoint.directory "$CHECKPOINTS"); fi
  command+=("${further[@]}")
}

# Prints a command so that a shell would take it again, and runs it unless --dry-run was given.
run() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# The configs say data/librispeech/...; DATA is where that data folder really is.
link_data() {
  if [ -n "$DATA" ] && ! [ data -ef "$DATA" ]; then
    [ -n "${DRY_RUN:-}" ] || [ -d "$DATA" ] || fail "DATA=$DATA: no such folder"
    [ ! -e data ] || [ -L data ] || fail "DATA=$DATA: there is another folder data here already"
    run ln -sfn "$DATA" data
  fi
}
