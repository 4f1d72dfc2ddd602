#!/usr/bin/env bash
# The commands that tpu_vm.sh runs on the hosts of its slices, in their folder of this checkout:
#
#   launch/tpu_host.sh setup BUCKET DATA | start COMMAND ... | follow | status | stop
set -euo pipefail
PATH=$HOME/.local/bin:$PATH
command=$1
shift

setup() {
  if ! command -v gcsfuse >/dev/null; then
    local key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
    curl -fsSL $packages/doc/apt-key.gpg | sudo tee $key >/dev/null
    echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get -qq update
    sudo apt-get -qq install -y gcsfuse
  fi
  # No metadata cache, as the other hosts must see at once what one host writes.
  mkdir -p bucket
  mountpoint -q bucket || gcsfuse --implicit-dirs --rename-dir-limit=100000 \
    --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$1" bucket
  # The machine's Python may be older than the package requires.
  command -v uv >/dev/null || curl -fsSL https://astral.sh/uv/install.sh | sh
  [ -x env/bin/python ] || uv venv -q --python 3.12 env
  uv pip install -q --python env/bin/python '.[tpu,gcs]'
  if [ -n "$2" ]; then
    mkdir -p data
    gcloud storage rsync -r "$2" data
  fi
}

# Prints the state of the training: its exit status, stopped, running, or gone with its machine.
status() {
  if [ -f status ]; then
    if [ -f stopped ]; then echo stopped; else cat status; fi
  elif grep -qs asr_jax "/proc/$(cat pid)/cmdline"; then
    echo running
  else
    echo gone
  fi
}

start() {
  if [ "$(status)" = running ]; then # after another host was lost
    pkill -TERM -P "$(cat pid)" || true
    timeout 90 tail -f "--pid=$(cat pid)" /dev/null || pkill -KILL -P "$(cat pid)" || true
  fi
  rm -f status stopped
  # shellcheck disable=SC2016
  JAX_PLATFORMS=tpu,cpu nohup bash -c '"$@" && ended=0 || ended=$?; echo "$ended" >status' - "$@" \
    >log 2>&1 </dev/null &
  echo $! >pid
}

case $command in
  setup) setup "$@" ;;
  start) start "$@" ;;
  follow) tail -n 100 -F "--pid=$(cat pid)" log ;;
  status) status ;;
  stop)
    touch stopped
    pkill -TERM -P "$(cat pid)"
    ;;
esac
