"""Run one implementation in a separate process, for benchmarks/transducer_loss.py."""

import importlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from transducer_implementations import INEXACT, JAX, TORCH, NotRun, Problem, ours


class JaxStep:
    """A jitted loss with its gradients, compiled for arrays of any content."""

    def __init__(self, loss: Any, problem: Problem):
        import jax
        import jax.numpy as jnp

        self.jax, self.dtype = jax, jnp.dtype(problem.dtype)
        if problem.dtype == "float32":  # no TF32, as in torch and in the public benchmark
            jax.config.update("jax_default_matmul_precision", "highest")
        batch = len(problem.lengths)
        floats = [jax.ShapeDtypeStruct(x, self.dtype) for x in problem.float_shapes()]
        integers = [
            jax.ShapeDtypeStruct(x, jnp.int32)
            for x in [(batch, problem.labels), (batch,), (batch,)]
        ]

        def total(*arguments):
            losses = loss(*arguments)
            return losses.sum(), losses

        step = jax.value_and_grad(total, tuple(range(len(floats))), has_aux=True)
        self.compiled = jax.jit(step).lower(*floats, *integers).compile()

    def compiled_bytes(self) -> int:
        memory: Any = self.compiled.memory_analysis()
        return (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )

    def free_bytes(self) -> int:
        return (self.jax.devices()[0].memory_stats() or {}).get("bytes_limit") or _free_memory()

    def place(self, floats, integers):
        # Copy, even on a CPU: memory shared with NumPy would be missing from the peak.
        put = lambda x: self.jax.numpy.array(x, copy=True)
        floats = [put(x.astype(self.dtype)) for x in floats]
        self.arguments = self.jax.block_until_ready([*floats, *map(put, integers)])

    def run(self):
        self.results = None
        self.results = self.jax.block_until_ready(self.compiled(*self.arguments))

    def device_peak(self) -> int | None:
        return (self.jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    def losses_and_norms(self):
        (_, losses), gradients = self.results  # pyright: ignore[reportGeneralTypeIssues]
        return np.asarray(losses), [_norm(np.asarray(x, np.float32)) for x in gradients]


class TorchStep:
    """A torch loss with its gradients."""

    def __init__(self, name: str, problem: Problem, platform: str):
        self.torch = torch = importlib.import_module("torch")
        self.losses_of = TORCH[name](platform, problem)
        if platform != "cpu" and not torch.cuda.is_available():
            raise NotRun("this torch has no GPU")
        self.device = "cpu" if platform == "cpu" else "cuda"
        self.dtype = getattr(torch, problem.dtype)
        # The exact implementations hold in float32: logits, their log-softmax and two gradients;
        # hidden states and their gradients. This estimates the public benchmark's 22 GB as 21.
        values = 4 * problem.vocabulary + 3 * problem.width
        needed = 0 if name in INEXACT else 4 * problem.padded_cells * values
        free = _free_memory() if platform == "cpu" else torch.cuda.mem_get_info()[0]
        if needed > free:
            raise NotRun(
                f"would need about {needed / 1e9:.1f} GB, only {free / 1e9:.1f} GB are free"
            )

    def place(self, floats, integers):
        put = lambda x: self.torch.from_numpy(x).to(self.device, copy=True)
        floats = [put(x).to(self.dtype) for x in floats]
        if len(floats) > 1:
            floats[2] = floats[2].T.contiguous()  # the layout of torch.nn.Linear
        self.floats = [x.requires_grad_() for x in floats]
        self.integers = [put(x) for x in integers]
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def run(self):
        self.results = None
        losses = self.losses_of(self.floats, self.integers)
        self.results = losses.detach(), self.torch.autograd.grad(losses.sum(), self.floats)
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def device_peak(self) -> int | None:
        return self.torch.cuda.max_memory_allocated() if self.device == "cuda" else None

    def losses_and_norms(self):
        losses, gradients = self.results  # pyright: ignore[reportGeneralTypeIssues]
        return losses.float().cpu().numpy(), [_norm(x.float().cpu().numpy()) for x in gradients]


def _norm(x: np.ndarray) -> float:
    return float(np.sqrt(np.sum(np.square(x, dtype=np.float64))))


def make_step(name: str, problem: Problem, platform: str) -> JaxStep | TorchStep:
    """Build a name of JAX or TORCH, or "ours=NAME": transducer_loss(implementation=NAME)."""
    if name in TORCH:
        return TorchStep(name, problem, platform)
    if name.startswith("ours="):
        return JaxStep(ours(name.removeprefix("ours=")), problem)
    return JaxStep(JAX[name], problem)


def serve(connection: Any, name: str, problem: Problem, platform: str, run: bool) -> None:
    """Report once, then answer each message that is not None with the seconds of a run.

    It needs a separate process, since peak resident memory counts everything a process has done.
    """
    try:
        step = make_step(name, problem, platform)
        report: dict[str, Any] = {}
        if isinstance(step, JaxStep):
            report["compiled_bytes"] = step.compiled_bytes()
        if run:
            report |= _first_run(step, problem, platform)
    except NotRun as reason:
        return connection.send({"not_run": str(reason)})
    except (ImportError, OSError) as error:
        return connection.send({"not_run": f"not installed: {_first_line(error)}"})
    except Exception as error:
        return connection.send({"not_run": f"failed: {type(error).__name__}: {_first_line(error)}"})
    connection.send(report)
    while run and connection.recv():
        start = time.perf_counter()
        step.run()
        connection.send(time.perf_counter() - start)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:150]


def _first_run(step: JaxStep | TorchStep, problem: Problem, platform: str) -> dict[str, Any]:
    if isinstance(step, JaxStep) and step.compiled_bytes() > step.free_bytes():
        raise NotRun(f"needs {step.compiled_bytes() / 1e9:.1f} GB")
    floats, integers = problem.draw()
    # A tiny batch first: what libraries load and keep at their first call does not count.
    if isinstance(step, TorchStep):
        tiny = Problem(((4, 2),), problem.vocabulary, problem.width, problem.dtype)
        step.place(*tiny.draw())
        step.run()
        if platform != "cpu":
            step.torch.cuda.reset_peak_memory_stats()
    _forget_peak()
    before = _resident("VmRSS")
    step.place(floats, integers)
    step.run()
    peak = step.device_peak() if platform != "cpu" else _resident("VmHWM") - before
    losses, norms = step.losses_and_norms()
    return {"measured_bytes": peak, "losses": losses, "gradient_norms": norms}


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def _free_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def multiply(connection: Any) -> None:
    """Report JAX's device, then answer each dtype with the operations per second of a product.

    The product is timed in every round, since the best time needs a moment without other load.
    """
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_default_matmul_precision", "highest")
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0))
    description = {"platform": device.platform, "device": device.device_kind, "cores": cores}
    connection.send(description | {"jax": jax.__version__})
    size = 1024 if device.platform == "cpu" else 8192
    prepared = {}
    while dtype := connection.recv():
        if dtype == "bfloat16" and any(x in device.device_kind for x in ("H100", "H200")):
            connection.send(790e12)  # measured on such a GPU, whose data sheet says 989e12
            continue
        if dtype not in prepared:
            matrix = jnp.ones((size, size), dtype)
            prepared[dtype] = jax.jit(jnp.matmul).lower(matrix, matrix).compile(), matrix
            jax.block_until_ready(prepared[dtype][0](matrix, matrix))
        product, matrix = prepared[dtype]
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(product(matrix, matrix))
            seconds.append(time.perf_counter() - start)
        connection.send(2 * size**3 / min(seconds))
