"""What started this process beside others, where JAX knows to ask it for their places.

SLURM, Open MPI and Kubernetes say it in the environment, a Cloud TPU's machine only when asked.
"""

import os
import urllib.error
import urllib.request

METADATA_SECONDS = 20


def started_together() -> int:
    """How many processes were started together with this one; 1 where nothing says so."""
    several = lambda name: int(os.environ.get(name) or 1)
    gke_hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    tpu_hosts, tpu_slices = _cloud_tpu()
    return max(
        # Of a step that srun started; a batch script by itself is one process, whatever was booked.
        several("SLURM_STEP_NUM_TASKS"),
        several("OMPI_COMM_WORLD_SIZE"),
        several("MEGASCALE_NUM_SLICES") * len(gke_hosts),
        tpu_slices * len(tpu_hosts),
    )


def scheduled_hosts() -> str:
    """Where the processes are, as is said; JAX takes the first as coordinator."""
    names = ("SLURM_STEP_NODELIST", "TPU_WORKER_HOSTNAMES", "OMPI_MCA_orte_hnp_uri")
    said = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    tpu_hosts, tpu_slices = _cloud_tpu()
    if tpu_hosts:
        said.append(f"{tpu_slices} slice(s), of which this one's hosts are {','.join(tpu_hosts)}")
    return " ".join(said) or "the scheduler"


def _cloud_tpu() -> tuple[list[str], int]:
    """Hosts of this Cloud TPU slice and the number of slices; ([], 1) on any other machine."""
    # JAX sets the first where it finds a TPU, and the second where it finds none.
    if os.environ.get("TPU_ML_PLATFORM") != "JAX" or "TPU_SKIP_MDS_QUERY" in os.environ:
        return [], 1
    hosts = _metadata("worker-network-endpoints")
    # Lines like MEGASCALE_NUM_SLICES: '2'
    said = dict(line.split(":", 1) for line in _metadata("tpu-env").splitlines() if ":" in line)
    slices = os.environ.get("MEGASCALE_NUM_SLICES") or said.get("MEGASCALE_NUM_SLICES", "1")
    # Names, or name:number:address.
    return [host.split(":")[-1] for host in hosts.split(",") if host], int(slices.strip(" '"))


def _metadata(key: str) -> str:
    """Of the instance; empty where there is no such thing, or no metadata."""
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
