"""The number and hosts of the processes that a scheduler started together with this one.

SLURM, Open MPI and Kubernetes describe them in the environment, a Cloud TPU in its metadata. JAX
reads both as well.
"""

import os
import urllib.error
import urllib.request
from typing import NamedTuple

METADATA_SECONDS = 20


class _CloudTpu(NamedTuple):
    """Hosts of this machine's Cloud TPU slice, and the number of slices."""

    hosts: list[str]
    slices: int


def started_together() -> int:
    """Return the number of processes that the scheduler started, 1 without a scheduler."""
    gke_hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    tpu = _cloud_tpu()
    return max(
        # srun sets it for a step. A batch script is one process, however many tasks are booked.
        _number("SLURM_STEP_NUM_TASKS"),
        _number("OMPI_COMM_WORLD_SIZE"),
        _number("MEGASCALE_NUM_SLICES") * len(gke_hosts),
        tpu.slices * len(tpu.hosts),
    )


class Job(NamedTuple):
    """A job of a scheduler, which may restart it under the same name."""

    id: str
    restarts: int


def scheduled_job() -> Job:
    """Return the SLURM job that this process belongs to, with the id "" without SLURM."""
    number, restarts = (os.environ.get(f"SLURM_{name}", "") for name in ("JOB_ID", "RESTART_COUNT"))
    cluster = os.environ.get("SLURM_CLUSTER_NAME", "")
    id = f"{cluster}:{number}" if cluster and number else number
    return Job(id, int(restarts) if restarts.isdecimal() else 0)


def scheduled_hosts() -> str:
    """Describe the hosts as the scheduler names them; JAX takes the first as coordinator."""
    names = ("SLURM_STEP_NODELIST", "TPU_WORKER_HOSTNAMES", "OMPI_MCA_orte_hnp_uri")
    sources = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    tpu = _cloud_tpu()
    if tpu.hosts:
        hosts = ",".join(tpu.hosts)
        sources.append(f"{tpu.slices} slice(s), of which this one's hosts are {hosts}")
    return " ".join(sources) or "the scheduler"


def _number(name: str) -> int:
    return int(os.environ.get(name) or 1)


def _cloud_tpu() -> _CloudTpu:
    """Return this machine's Cloud TPU; on any other machine one without hosts."""
    # JAX sets the first where it finds a TPU, and the second where it finds none.
    if os.environ.get("TPU_ML_PLATFORM") != "JAX" or "TPU_SKIP_MDS_QUERY" in os.environ:
        return _CloudTpu([], 1)
    # Each is a name, or name:number:address.
    hosts = _metadata("worker-network-endpoints").split(",")
    # Lines such as MEGASCALE_NUM_SLICES: '2'
    lines = _metadata("tpu-env").splitlines()
    settings = dict(line.split(":", 1) for line in lines if ":" in line)
    slices = os.environ.get("MEGASCALE_NUM_SLICES") or settings.get("MEGASCALE_NUM_SLICES", "1")
    return _CloudTpu([host.split(":")[-1] for host in hosts if host], int(slices.strip(" '")))


def _metadata(key: str) -> str:
    """Return an attribute of this cloud instance; empty without it, and on other machines."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{key}",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=METADATA_SECONDS) as answer:
            return answer.read().decode()
    except urllib.error.URLError:
        return ""
