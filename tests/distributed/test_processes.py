"""Several processes train like one, stop together, and never wait for a lost one."""

import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from tiny import tiny_config

from asr_jax.config_file import write_config
from asr_jax.distributed import processes, schedulers
from asr_jax.distributed.processes import Processes, connected_processes

ROOT = Path(__file__).parents[2]
CONFIG = tiny_config(
    data={
        "train": "samples/an4/dev",
        "dev": "samples/an4/dev",
        "bucket_seconds": (4.0,),
        "bucket_labels": (64,),
    },
    augment={"frequency_mask_bins": 8},
    encoder={"attention": "rotary"},
    # With a large epsilon Adam is gradient descent with momentum, which does not amplify rounding.
    optimizer={"epsilon": 10.0, "peak_learning_rate": 1.0, "warmup_steps": 5},
    train={"steps": 50, "log_every_steps": 1},
    checkpoint={"every_steps": 10},
)
# The flags of conftest.py without its number of devices, as each process has what its mesh needs.
XLA_FLAGS = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    write_config(CONFIG, path)
    return path


def start(
    config,
    run,
    count,
    *options,
    of_last=None,
    folders=(ROOT, ROOT, ROOT, ROOT),
    platform="cpu",
    address="127.0.0.1",
    hosts=((), (), (), ()),
):
    """Start processes that train together, each on its own device, in its folder, on its host.

    `of_last` is the options that the last process has in place of, or besides, those of all.
    """
    of_all = {"--run": run}
    if count > 1:
        coordinator = f"{address}:{free_port()}"
        of_all |= {"--mesh.data": count, "--coordinator": coordinator, "--processes": count}

    def arguments(n: int) -> list[str]:
        of_one = of_all | ({"--process": n} if count > 1 else {})
        of_one |= (of_last or {}) if n == count - 1 else {}
        return [*(f"{name}={value}" for name, value in of_one.items()), *options]

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": platform}
    environment |= {"XLA_FLAGS": XLA_FLAGS}
    # All runs share one cache, so that each program is compiled once.
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(config.parent / "compiled")}
    return [
        subprocess.Popen(
            [*hosts[n], sys.executable, "-m", "asr_jax", "train", str(config), *arguments(n)],
            cwd=folders[n],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(count)
    ]


def ended(started, *, within_seconds: float | None = None) -> list[tuple[int, str]]:
    """Return the exit status and stderr of each process, once all have ended."""
    try:
        messages = [process.communicate(timeout=within_seconds)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, stderr) for process, stderr in zip(started, messages)]


def logged(run: Path, name: str) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def wait_for_step(run: Path, step: int, started) -> None:
    while not (run / "metrics.jsonl").exists() or max(logged(run, "loss"), default=0) < step:
        assert all(process.poll() is None for process in started), ended(started)
        time.sleep(0.02)


def params(run: Path, step: int):
    with ocp.training.Checkpointer(run / "checkpoints") as checkpointer:
        names = checkpointer.metadata(step).metadata
        cpu = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=cpu), names
        )
        return checkpointer.load(step, abstract)["params"]


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("alone")
    [(status, stderr)] = ended(start(config, run, 1))
    assert status == 0, stderr
    return run


def assert_trained_alike(run: Path, alone: Path) -> None:
    losses, expected = logged(run, "loss"), logged(alone, "loss")
    assert list(losses) == list(expected) == list(range(1, 51))
    np.testing.assert_allclose(list(losses.values()), list(expected.values()), rtol=1e-5)
    assert logged(run, "dev_wer") == logged(alone, "dev_wer")

    def compare(a, b):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1e-3, float(np.abs(b).max())))

    jax.tree.map(compare, params(run, 50), params(alone, 50))


@pytest.mark.slow
def test_two_processes_stop_together_and_four_or_one_resume(config, alone, tmp_path):
    run = tmp_path / "run"
    started = start(config, run, 2)
    wait_for_step(run, 20, started)
    started[1].send_signal(signal.SIGTERM)
    for status, stderr in ended(started):
        assert status == 128 + signal.SIGTERM, stderr
        assert "stopped by SIGTERM after saving" in stderr
    step = max(logged(run, "loss"))
    assert 20 <= step < 50
    assert (run / f"checkpoints/{step}").is_dir()

    for count in (4, 1):
        copy = tmp_path / f"by-{count}"
        subprocess.run(["cp", "-r", run, copy], check=True)
        for status, stderr in ended(start(config, copy, count)):
            assert status == 0, stderr
        assert_trained_alike(copy, alone)


@pytest.mark.slow
def test_when_one_process_is_killed_the_others_end_and_a_restart_resumes(config, alone, tmp_path):
    run = tmp_path / "run"
    started = start(config, run, 2)
    wait_for_step(run, 12, started)
    started[1].kill()
    (status, stderr), _ = ended(started, within_seconds=60)
    assert status not in (0, None)
    assert "lost" in stderr or "unhealthy" in stderr, stderr
    for status, stderr in ended(start(config, run, 2)):
        assert status == 0, stderr
    assert_trained_alike(run, alone)


@pytest.mark.slow
def test_processes_with_different_settings_or_data_are_named(config, tmp_path):
    host = socket.gethostname()
    rate = {"--optimizer.peak-learning-rate": 0.5}
    for status, stderr in ended(start(config, tmp_path / "a", 2, of_last=rate)):
        assert status == 2
        assert f"process 1 ({host}) has optimizer.peak_learning_rate = 0.5" in stderr
        assert f"process 0 ({host}) has 1.0: must be the same on all hosts" in stderr

    # A file of one name that has other contents for the second process.
    folders = [tmp_path / "host0", tmp_path / "host1"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        recordings = sorted((ROOT / "samples/an4/dev").rglob("*.ogg"))[: 40 - number]
        lines = [json.dumps({"audio_filepath": str(r), "text": "one"}) for r in recordings]
        (folder / "data.jsonl").write_text("\n".join(lines))
    data = ("--data.train", "data.jsonl", "--data.dev", "")
    for status, stderr in ended(start(config, tmp_path / "b", 2, *data, folders=folders)):
        assert status == 2
        assert f"process 1 ({host}) has a fingerprint of data.train = data.jsonl" in stderr


@pytest.mark.slow
def test_hosts_that_differ_are_named(config, tmp_path):
    host = socket.gethostname()
    code = tmp_path / "code"
    shutil.copytree(ROOT / "asr_jax", code / "asr_jax")
    with (code / "asr_jax/types.py").open("a") as file:
        file.write("# changed on one host\n")
    starts = {
        "has a fingerprint of the code = ": {"folders": (ROOT, code)},
        f"process 1 ({host}) does not see what process 0 ({host}) writes there": {
            "of_last": {"--run": tmp_path / "elsewhere"}
        },
        "process 1 has 2 devices, process 0 has 1: every host must have the same number": {
            "of_last": {"--mesh.data": 4}
        },
        f"asr-jax train: {host}: JAX_PLATFORMS=cuda: no accelerator found (": {"platform": "cuda"},
    }
    for message, difference in starts.items():
        for status, stderr in ended(start(config, tmp_path / "run", 2, **difference)):
            lines = [line for line in stderr.splitlines() if "Gloo" not in line]
            assert status == 2 and len(lines) == 1 and message in lines[0], stderr


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory):
    """Two connected network namespaces: the words that run a command on each of these hosts."""
    if os.getuid() != 0 or any(map(lambda tool: shutil.which(tool) is None, ("ip", "unshare"))):
        pytest.skip("network namespaces need root, ip and unshare")
    ip = lambda *words: subprocess.run(["ip", *words], check=True, capture_output=True)
    names = [f"asr{os.getpid()}{letter}" for letter in "ab"]
    table = tmp_path_factory.mktemp("hosts") / "hosts"
    table.write_text("127.0.0.1 localhost\n10.77.7.1 host-a\n10.77.7.2 host-b\n")
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode().strip()}")
        ip("link", "set", names[1], "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.77.7.{number}/24", "dev", name)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", name, "up")
        # Each host has a name, a table of both names, which Gloo looks up, and an identity, so that
        # JAX treats its devices as a slice.
        begin = (
            'hostname "$0" && mount --bind "$1" /etc/hosts && '
            'mount --bind "$2" /proc/sys/kernel/random/boot_id && shift 2 && exec "$@"'
        )
        for name in names:
            (table.parent / name).write_text(f"{uuid.uuid4()}\n")
        yield [
            ("ip", "netns", "exec", name, "unshare", "--uts", "--mount", "sh", "-c", begin)
            + (f"host-{name[-1]}", str(table), str(table.parent / name))
            for name in names
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.slow
def test_two_hosts_with_their_own_addresses_train_as_one_does(config, alone, two_hosts, tmp_path):
    run = tmp_path / "run"
    for status, stderr in ended(start(config, run, 2, address="10.77.7.1", hosts=two_hosts)):
        assert status == 0, stderr
    assert_trained_alike(run, alone)


@pytest.mark.slow
def test_hosts_that_share_no_run_directory_are_named(config, two_hosts, tmp_path):
    (tmp_path / "runs").mkdir()
    # At this path the second host has a disk of its own.
    own_disk = 'mount -t tmpfs none "$0" && exec "$@"'
    hosts = [two_hosts[0], (*two_hosts[1], "sh", "-c", own_disk, str(tmp_path / "runs"))]
    run = tmp_path / "runs/a"
    for status, stderr in ended(start(config, run, 2, address="10.77.7.1", hosts=hosts)):
        assert status == 2
        assert "process 1 (host-b) does not see what process 0 (host-a) writes there" in stderr


@pytest.mark.slow
def test_host_that_cannot_reach_process_0_names_its_address(two_hosts):
    script = """
import sys
from asr_jax.distributed.rendezvous import rendezvous
try:
    rendezvous(sys.argv[1], process=int(sys.argv[2]), processes=2, timeout_seconds=4)
except ValueError as error:
    sys.exit(str(error))
"""

    def start_rendezvous(number: int, coordinator: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*two_hosts[number], sys.executable, "-c", script, coordinator, str(number)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )

    # No host has the third address; the fourth belongs to no network of this host.
    for address, reason in (
        ("10.77.7.3", "(No route to host|timed out)"),
        ("10.88.0.1", "Network is unreachable"),
    ):
        [(status, stderr)] = ended([start_rendezvous(1, f"{address}:8476")])
        assert status == 1
        assert re.fullmatch(
            rf"--coordinator {address}:8476: not reached within 4 s \({reason}\): is process 0 "
            r"running there, and can this host connect to it\?\n",
            stderr,
        ), stderr
    [(status, stderr)] = ended([start_rendezvous(0, "10.77.7.1:8476")])
    assert status == 1 and stderr.endswith(
        "--coordinator 10.77.7.1:8476: process 1 of 2 did not connect within 4 s; the first that "
        "did: 0 (host-a)\n"
    ), stderr


def test_failed_rendezvous_is_reported_with_its_address(monkeypatch):
    monkeypatch.setattr(processes, "RENDEZVOUS_SECONDS", 0.1)
    address = f"127.0.0.1:{free_port()}"
    options = Processes(coordinator=address, processes=2, process=1)
    refused = rf"^--coordinator {address}: not reached within 0.1 s \(Connection refused\)"
    with pytest.raises(ValueError, match=refused):
        with connected_processes(options, command="train"):
            raise AssertionError("unreachable")


@pytest.mark.slow
def test_missing_processes_of_a_scheduler_are_reported_in_one_line():
    script = """
from asr_jax.distributed import processes, schedulers
processes.RENDEZVOUS_SECONDS = 2
with processes.connected_processes(processes.Processes(), command="train"):
    raise AssertionError("unreachable")
"""
    scheduler = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost"} | {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    }
    process = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **scheduler},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr == (
        f"asr-jax train: {socket.gethostname()}: SLURM_STEP_NODELIST=localhost: the 2 processes "
        "did not connect within 2 s (are all of them running, and can their hosts reach each "
        "other?)\n"
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"coordinator": "host"}, "--coordinator host: must be HOST:PORT"),
        ({"coordinator": "host:0"}, "--coordinator host:0: must be HOST:PORT"),
        ({"processes": 2}, "--processes 2: needs --coordinator HOST:PORT"),
        (
            {"coordinator": "host:1", "processes": 2, "process": 2},
            "--process 2: must lie in 0..1, as --processes is 2",
        ),
    ],
)
def test_invalid_process_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Processes(**options)


@pytest.mark.parametrize(
    "environment, count",
    [
        ({}, 1),
        # A batch script, or an interactive allocation of several tasks, is one process.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, 1),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, 8),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 2),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, 1),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d", "MEGASCALE_NUM_SLICES": "2"}, 8),
    ],
)
def test_number_of_processes_is_read_from_the_scheduler(environment, count, monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TPU_ML_PLATFORM", raising=False)
    assert schedulers.started_together() == count


@pytest.fixture
def tpu_hosts():
    """Two slices of one host each: the environment of each, which names its metadata server."""

    def handler_of(number: int) -> type[http.server.BaseHTTPRequestHandler]:
        attributes = {
            "agent-worker-number": "0",
            "worker-network-endpoints": f"name:{number}:127.0.0.1",
            "tpu-env": f"ZONE: 'here'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '{number}'\n"
            "MEGASCALE_COORDINATOR_ADDRESS: '127.0.0.1:8080'\n",
        }

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                value = attributes.get(self.path.rpartition("/")[2], "")
                self.send_response(200 if value else 404)
                self.end_headers()
                self.wfile.write(value.encode())

            def log_message(self, *_):
                pass

        return Answer

    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(n)) for n in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield [
        {"TPU_ML_PLATFORM": "JAX", "GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
        for server in servers
    ]
    for server in servers:
        server.shutdown()
        server.server_close()


def test_hosts_of_a_cloud_tpu_are_read_from_its_metadata(tpu_hosts, monkeypatch):
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    for name, value in tpu_hosts[1].items():
        monkeypatch.setenv(name, value)
    assert schedulers.started_together() == 2
    assert schedulers.scheduled_hosts() == "2 slice(s), of which this one's hosts are 127.0.0.1"
    # JAX sets this where it finds no TPU.
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    assert schedulers.started_together() == 1


@pytest.mark.slow
def test_two_cloud_tpu_slices_connect_as_jax_reads_the_same_metadata(tpu_hosts):
    script = """
import os
os.environ["JAX_FORCE_TPU_INIT"] = "1"  # by which JAX recognizes a Cloud TPU
import jax
del os.environ["TPU_SKIP_MDS_QUERY"]
from asr_jax.distributed.processes import Processes, all_gather_text, connected_processes
with connected_processes(Processes(), command="train") as count:
    print(count, all_gather_text(f"process {jax.process_index()}"))
"""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in tpu_hosts
    ]
    for process in started:
        stdout, stderr = process.communicate(timeout=300)
        # Gloo prints before it.
        assert stdout.endswith("\n2 ['process 0', 'process 1']\n"), stderr
