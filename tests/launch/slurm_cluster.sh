#!/usr/bin/env bash
# A SLURM cluster of one node with two slots, inside one folder: slurm_cluster.sh FOLDER.
# It runs until its standard input ends. A job in the partition high preempts those in low, which get
# SIGTERM and a minute.
set -euo pipefail
folder=$1
mkdir -p "$folder"/{munge,state,spool}
export SLURM_CONF=$folder/slurm.conf
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

(umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
munged=("--socket=$folder/munge/socket" "--key-file=$folder/munge/key" "--seed-file=$folder/munge/seed"
  "--pid-file=$folder/munge/pid" "--log-file=$folder/munge/log")
# cred_expire: the time that a requeued job waits before it may start again, two minutes by default.
cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
KillWait=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1
NodeName=$(hostname) NodeAddr=127.0.0.1 CPUs=2 CoresPerSocket=2 RealMemory=1000
PartitionName=low Nodes=$(hostname) Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=$(hostname) PriorityTier=2
END
munged --force "${munged[@]}"
chmod 755 "$folder/munge"
slurmctld -D -c >"$folder/slurmctld.log" 2>&1 &
controller=$!
slurmd -D >"$folder/slurmd.log" 2>&1 &
node=$!
stop() {
  scancel --signal=KILL --full --user="$(id -un)" # jobs of a test that failed
  # The node waits forever for a step that ends after the controller.
  for _ in {1..100}; do
    [ -n "$(squeue --noheader)" ] || break
    sleep 0.2
  done
  kill "$node" "$controller"
  wait
  munged --stop "${munged[@]:0:1}"
}
trap stop EXIT
until sinfo --noheader --states=idle 2>/dev/null | grep -q low; do
  if [ "$SECONDS" -gt 90 ]; then
    tail -n 5 "$folder"/*.log >&2
    exit 1
  fi
  sleep 0.2
done
echo ready
cat >/dev/null
