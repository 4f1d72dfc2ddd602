"""The Hopper kernels without a GPU: interpreted, compared with plain JAX; and compiled for sm_90a.

The interpreter's exp and tanh are exact, and it does not detect a missing fence before a matrix
product, so these tests do not replace runs on a device.
"""

import faulthandler
import math
import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr_jax.losses import _checks, _lattice
from asr_jax.losses._mosaic_gpu_support import obstacle

if jax.__version_info__ < (0, 11):
    pytest.skip("the kernels need JAX 0.11", allow_module_level=True)

from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
from jax.experimental.pallas import mosaic_gpu as plgpu

from asr_jax.losses import _mosaic_gpu, transducer_loss

INTERPRET = plgpu.InterpretGPUParams(detect_races=True)
WIDTH = 128  # two pieces of the kernel for each 128 symbols
# All tiles of the first block are computed, one of the second, none of the third.
TILES = jnp.array([(0, 0, 0), (1, 64, 2), (0, 64, 1), (1, 0, 1), (0, 0, 0), (0, 0, 0)], jnp.int32)
LIVE = 3
JOINTS = [
    dict(vocabulary=256, blank_id=0, activation="tanh", normalize_blank=True),
    # Three times 128 symbols make six pieces, so that their four slots are reused.
    dict(vocabulary=300, blank_id=299, activation="relu", normalize_blank=False),
]


@pytest.fixture(autouse=True)
def a_deadlock_ends():
    """End the process with a traceback if the interpreter hangs in a deadlock, as a GPU would."""
    faulthandler.dump_traceback_later(200, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def no_races():
    yield
    assert not gpu_callbacks.get_races().races_found


@pytest.fixture(params=JOINTS, ids=["tanh", "relu, HAT"])
def joint(request):
    """Return the kernels' arrays and options, and JAX's hidden rows and logits of the cells."""
    options = dict(request.param)
    vocabulary, blank_id = options.pop("vocabulary"), options["blank_id"]
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    encoded, predicted = (normal(2, n, WIDTH).astype(jnp.bfloat16) for n in (128, 3))
    kernel = (normal(WIDTH, vocabulary) * (2 / WIDTH**0.5)).astype(jnp.bfloat16)
    bias = normal(vocabulary)
    labels = jnp.asarray(rng.integers(0, vocabulary, (2, 3)), jnp.int32).at[:, 2].set(blank_id)

    b, t0, u = TILES.T
    frames = encoded[b[:, None], t0[:, None] + np.arange(64)].astype(jnp.float32)
    total = frames + predicted[b, u].astype(jnp.float32)[:, None]
    act = {"tanh": jnp.tanh, "relu": jax.nn.relu}[options["activation"]]
    hidden = act(total).astype(jnp.bfloat16)
    logits = jnp.dot(hidden, kernel, preferred_element_type=jnp.float32) + bias
    output = _mosaic_gpu.pad_vocabulary(kernel, bias)
    operands = _mosaic_gpu.JointOperands(encoded, predicted, *output, labels)
    return operands, options, hidden, logits


def of_logits(logits, labels, options):
    """Return what the forward kernel computes by definition: normalizer, blank, label [N, 64]."""
    b, _, u = TILES.T
    blank = logits[..., options["blank_id"]]
    label = jnp.take_along_axis(logits, labels[b, u][:, None, None], axis=-1)[..., 0]
    if not options["normalize_blank"]:
        logits = logits.at[..., options["blank_id"]].set(-jnp.inf)
    return jax.nn.logsumexp(logits, axis=-1), blank, label


def test_the_forward_kernel_reduces_the_logits(joint, no_races):
    operands, options, _, logits = joint
    count = jnp.int32(LIVE)
    got = _mosaic_gpu.joint_forward(operands, TILES, count, **options, interpret=INTERPRET)
    for mine, want in zip(got, of_logits(logits, operands.labels, options)):
        np.testing.assert_allclose(mine[:LIVE], want[:LIVE], atol=3e-6)
        # The interpreter's memory is NaN at first: nothing ran here.
        assert np.isnan(mine[LIVE + 1 :]).all()


def test_the_gradient_kernel_is_the_forward_kernels_transpose(joint, no_races):
    operands, options, hidden, logits = joint
    (normalizer, *_), pull = jax.vjp(lambda x: of_logits(x, operands.labels, options), logits)
    cotangents = np.random.default_rng(1).normal(size=(3, *normalizer.shape)).astype(np.float32)
    cotangents[:, 1, 5] = cotangents[:, 2] = 0.0
    (want,) = pull(tuple(map(jnp.asarray, cotangents)))
    garbage = normalizer.at[1, 5].set(-1e6).at[2].set(-1e30)
    cotangents = _mosaic_gpu.CellPlanes(*map(jnp.asarray, cotangents))
    got, rows = _mosaic_gpu.joint_gradient_rows(
        operands, TILES, garbage, cotangents, **options, interpret=INTERPRET
    )
    got = np.asarray(got, np.float32).reshape(*normalizer.shape, -1)
    symbols = logits.shape[-1]
    np.testing.assert_allclose(got[..., :symbols], want, rtol=2**-8, atol=1e-6)
    assert not got[1, 5].any() and not got[2].any() and not got[..., symbols:].any()
    np.testing.assert_array_equal(rows, hidden.reshape(-1, WIDTH))


@pytest.mark.parametrize(
    "shape",
    [(1, 2, 3), (8, 2, 2, 5), (6, 1, 130)],
    ids=["one step", "both directions", "more columns than threads"],
)
def test_the_lattice_kernel_is_the_scan(shape, no_races):
    rng = np.random.default_rng(0)
    edges = rng.normal(size=(2, *shape)).astype(np.float32) - 1.0
    edges[rng.random(edges.shape) < 0.2] = -np.inf
    if len(shape) == 4:
        edges[:, 3, 1, 1] = -np.inf  # no path passes this anti-diagonal of this lattice
    start, end = np.full((2, *shape[1:]), -np.inf, np.float32)
    start[..., -2] = start[..., 0] = end[..., -1] = 0.0
    lattice = [jnp.asarray(x) for x in (*edges, start, end)]
    got = _mosaic_gpu.lattice_forward(*lattice, interpret=INTERPRET)
    for mine, want in zip(got, jax.jit(_lattice.walk)(*lattice)):
        np.testing.assert_allclose(mine, want, rtol=2e-6, atol=2e-6)


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(_checks, "obstacle", lambda *_: None)
    for name in ("joint_forward", "joint_gradient_rows", "lattice_forward"):
        run = partial(getattr(_mosaic_gpu, name), interpret=INTERPRET)
        monkeypatch.setattr(_mosaic_gpu, name, run)


def test_the_kernels_return_nan_for_nan_and_wrong_labels(problem, interpreted):
    p = problem((9, 3, 5, 7), (1, 0, 2, 2), frames=9, width=64, vocabulary=128)
    p = p._replace(labels=p.labels.at[2, 1].set(128), encoded=p.encoded.at[3, 2, 5].set(jnp.nan))
    floats = [x.astype(jnp.bfloat16) for x in (p.encoded, p.predicted, p.kernel / 8, p.bias)]
    losses = transducer_loss(*floats, *p.integers, implementation="mosaic_gpu")
    want = transducer_loss(*floats, *p.integers)
    assert np.isnan(losses).tolist() == [False, False, True, True]
    np.testing.assert_allclose(losses, want, rtol=1e-5)


@pytest.mark.parametrize("factorization", ["softmax", pytest.param("hat", marks=pytest.mark.slow)])
def test_the_loss_of_the_kernels_is_that_of_xla(problem, interpreted, factorization):
    """The problem has ragged lengths, several steps, and a vocabulary that must be padded."""
    p = problem((70, 3), (1, 0), frames=70, width=64, vocabulary=130)
    floats = [x.astype(jnp.bfloat16) for x in (p.encoded, p.predicted, p.kernel / 8, p.bias)]
    weights = jnp.array([1.0, 2.0])

    def losses_and_gradients(implementation):
        options = dict(factorization=factorization, implementation=implementation, chunk_frames=16)
        losses = lambda *x: transducer_loss(*x, *p.integers, **options)
        total = lambda *x: (losses(*x) @ weights, losses(*x))
        return jax.jit(jax.grad(total, (0, 1, 2, 3), has_aux=True))(*floats)

    gradients, losses = losses_and_gradients("mosaic_gpu")
    want_gradients, want = losses_and_gradients("xla")
    np.testing.assert_allclose(losses, want, rtol=1e-5)
    for mine, theirs in zip(gradients, want_gradients):
        mine, theirs = (np.asarray(x, np.float32) for x in (mine, theirs))
        np.testing.assert_allclose(mine, theirs, atol=2**-7 * np.abs(theirs).max())


def test_the_kernels_reject_other_shapes():
    zeros = lambda dtype, *shape: jnp.zeros(shape, dtype)
    operands = lambda symbols: _mosaic_gpu.JointOperands(
        *(zeros(jnp.bfloat16, 1, 64, 64), zeros(jnp.bfloat16, 1, 1, 64)),
        *(zeros(jnp.bfloat16, 64, symbols), zeros(jnp.float32, symbols)),
        zeros(jnp.int32, 1, 1),
    )
    tiles, count = zeros(jnp.int32, 3, 3), zeros(jnp.int32)
    options = dict(blank_id=0, activation="tanh", normalize_blank=True)
    with pytest.raises(ValueError, match="3 tiles: must be a multiple of 2"):
        _mosaic_gpu.joint_forward(operands(128), tiles, count, **options)
    with pytest.raises(ValueError, match="vocabulary = 100: must be a multiple of 128"):
        _mosaic_gpu.joint_forward(operands(100), tiles[:2], count, **options)


def test_obstacles_are_named():
    h200 = SimpleNamespace(compute_capability="9.0", device_kind="NVIDIA H200")
    a100 = SimpleNamespace(compute_capability="8.0", device_kind="NVIDIA A100")
    assert obstacle([jnp.bfloat16, jnp.zeros(0, jnp.bfloat16).dtype], 640, h200) is None
    assert obstacle([jnp.bfloat16, jnp.float32], 640, h200).startswith("inputs of float32")
    assert obstacle([jnp.bfloat16], 704, h200).startswith("width 704")
    assert obstacle([jnp.bfloat16], 640, a100).startswith("NVIDIA A100")
    assert obstacle([jnp.bfloat16], 640, jax.devices()[0]).startswith("cpu")


BATCH, FRAMES, CELLS, SYMBOLS = 32, 448, 101, 1024  # T 400, padded to tiles


@pytest.fixture
def compile_for(hopper, monkeypatch, capfd):
    """Compile a function of (shape, dtype) arguments for the GPU; return bytes of temporaries."""
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    sharding = jax.sharding.NamedSharding(hopper, jax.sharding.PartitionSpec())

    def compile_for(function, *shapes):
        arguments = [jax.ShapeDtypeStruct(*shape, sharding=sharding) for shape in shapes]
        with jax.sharding.use_abstract_mesh(hopper.abstract_mesh):
            compiled = jax.jit(function).lower(*arguments).compile()
        report = "".join(capfd.readouterr())
        assert re.findall(r"(\d+) bytes spill", report) == ["0", "0"], report
        return compiled.memory_analysis().temp_size_in_bytes

    return compile_for


def shapes_of_joint(width):
    return [
        ((BATCH, FRAMES, width), jnp.bfloat16),
        ((BATCH, CELLS, width), jnp.bfloat16),
        ((width, SYMBOLS), jnp.bfloat16),
        ((SYMBOLS,), jnp.float32),
        ((BATCH, CELLS), jnp.int32),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("width", [512, 640])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_joint_compiles_for_hopper_without_spills(compile_for, width, activation):
    options = dict(blank_id=0, activation=activation, normalize_blank=True)
    operands = lambda arrays: _mosaic_gpu.JointOperands(*arrays[:5])
    cotangents = lambda arrays: _mosaic_gpu.CellPlanes(*arrays[7:])
    tiles = BATCH * CELLS * FRAMES // 64
    temporaries = compile_for(
        lambda *arrays: _mosaic_gpu.joint_forward(operands(arrays), *arrays[5:], **options),
        *shapes_of_joint(width),
        ((tiles, 3), jnp.int32),
        ((), jnp.int32),
    )
    assert temporaries < 2**14
    tiles = 4 * 132
    temporaries = compile_for(
        lambda *arrays: _mosaic_gpu.joint_gradient_rows(
            operands(arrays), *arrays[5:7], cotangents(arrays), **options
        ),
        *shapes_of_joint(width),
        ((tiles, 3), jnp.int32),
        *[((tiles, 64), jnp.float32)] * 4,
    )
    assert temporaries < 2**18


@pytest.mark.slow
@pytest.mark.parametrize("cells", [101, 401])
def test_the_lattice_compiles_for_hopper_without_spills(compile_for, cells):
    steps = 400 + cells - 1
    edges = (steps, 2, BATCH, cells), jnp.float32
    ends = (2, BATCH, cells), jnp.float32
    temporaries = compile_for(_mosaic_gpu.lattice_forward, edges, edges, ends, ends)
    padded = 4 * (steps + 8) * 2 * BATCH * 128 * math.ceil(cells / 128)
    assert temporaries < 3.1 * padded


@pytest.mark.slow
def test_a_hopper_gpu_has_no_obstacle(hopper):
    assert obstacle([jnp.bfloat16] * 3, 640, hopper.devices[0]) is None
