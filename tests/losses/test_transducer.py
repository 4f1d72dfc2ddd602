"""transducer_loss compared with the written-out float64 form, and its documented laws."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_jax.losses import _reference, rnnt_loss, transducer_loss

FLOATS = (0, 1, 2, 3)
PER_UTTERANCE = ("encoded", "predicted", "labels", "encoded_lengths", "label_lengths")
WEIGHTS = np.array([1.0, -0.5, 2.0, 0.25], np.float32)


def reference(p, weights, **options):
    """Return losses and gradients of their weighted sum, in float64, one utterance at a time."""
    losses, sums = [], [np.zeros(x.shape) for x in p.floats]
    for b, weight in enumerate(weights):
        *floats, labels = p.row(b)
        loss, (encoded, predicted, kernel, bias) = _reference.joint_loss_and_gradients(
            *floats, labels, **options
        )
        losses.append(loss)
        sums[0][b, : len(encoded)] += weight * encoded
        sums[1][b, : len(predicted)] += weight * predicted
        sums[2] += weight * kernel
        sums[3] += weight * bias
    return np.array(losses), sums


OPTIONS = "blank_id", "activation", "chunk_frames", "utterances_per_group", "implementation"
OPTIONS += ("negligible_gradient",)


@partial(jax.jit, static_argnames=OPTIONS)
def losses_and_gradients(p, weights, **options):
    def weighted(*floats):
        losses = transducer_loss(*floats, *p.integers, **options)
        return jnp.where(jnp.isinf(losses), 0.0, losses) @ weights, losses

    gradients, losses = jax.grad(weighted, FLOATS, has_aux=True)(*p.floats)
    return losses, gradients


def assert_close(got, want, atol=5e-6):
    """Compare within atol of the largest entry: kernel and bias are sums with cancellation."""
    for mine, theirs in zip(got, want):
        scale = max(1.0, np.abs(theirs).max(initial=0.0))
        np.testing.assert_allclose(np.asarray(mine, np.float64), theirs, atol=atol * scale)


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_frames": 3},
        {"chunk_frames": 3, "activation": "relu"},
        {"chunk_frames": 3, "blank_id": 2},
        {"implementation": "reference"},
    ],
)
def test_losses_and_all_gradients(problem, options):
    p = problem(blank_id=options.get("blank_id", 0))
    losses, gradients = losses_and_gradients(p, WEIGHTS, **options)
    definition = {k: v for k, v in options.items() if k in ("blank_id", "activation")}
    want = reference(p, WEIGHTS, **definition)
    np.testing.assert_allclose(losses, want[0], rtol=3e-6)
    assert_close(gradients, want[1])


@settings(max_examples=6, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_and_any_chunk(problem, data):
    """Sizes up to several tiles of 16 frames and 8 label positions, and at their boundaries."""
    integer = lambda low, high: data.draw(st.integers(low, high))
    frames = data.draw(st.sampled_from([1, 2, 5, 15, 16, 17, 33]))
    labels = data.draw(st.sampled_from([0, 1, 5, 7, 8, 15, 16]))
    batch = integer(1, 3)
    p = problem(
        [frames] + [integer(1, frames) for _ in range(batch - 1)],
        [labels] + [integer(0, labels) for _ in range(batch - 1)],
        vocabulary=integer(2, 6),
        width=integer(1, 5),
        frames=frames,
        seed=integer(0, 99),
    )
    weights = np.linspace(-1, 2, batch, dtype=np.float32)
    losses, gradients = losses_and_gradients(p, weights, chunk_frames=integer(1, frames + 2))
    want = reference(p, weights)
    np.testing.assert_allclose(losses, want[0], rtol=3e-6, atol=1e-6)
    assert_close(gradients, want[1])


def test_a_sharp_alignment(problem):
    """Most occupancies are zero in float32, and their tiles are left out of the gradient."""
    p = problem([33, 20], [14, 9], vocabulary=6, width=4, frames=33)
    p = p._replace(encoded=p.encoded * 3, predicted=p.predicted * 3, kernel=p.kernel * 30)
    weights = np.array([1.0, -2.0], np.float32)
    losses, gradients = losses_and_gradients(p, weights, chunk_frames=1)
    want = reference(p, weights)
    np.testing.assert_allclose(losses, want[0], rtol=3e-6)
    assert_close(
        gradients, want[1], atol=2e-4
    )  # logits of about 100 have two digits less precision


def test_negligible_gradient_bounds_the_change_of_gradients(problem):
    """A logit's gradient changes by at most twice the bound; others by sums of these changes."""
    p = problem([60, 41], [40, 17], vocabulary=4, width=3, frames=60)
    of = lambda x: losses_and_gradients(p, np.ones(2, np.float32), negligible_gradient=x)[1]
    exact, cells = of(0.0), 60 * 41 + 41 * 18
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), of(1e-9), exact)
    largest = max(1.0, float(jnp.abs(p.kernel).max()))
    bound = 2 * 1e-3 * cells * p.kernel.shape[1] * largest
    jax.tree.map(partial(np.testing.assert_allclose, atol=bound), of(1e-3), exact)
    assert any((a != b).any() for a, b in zip(of(1e-3), exact))  # something was left out


def test_without_bias(problem):
    p = problem()
    losses = jax.jit(lambda p: transducer_loss(*p.floats[:3], None, *p.integers))(p)
    want = reference(p._replace(bias=jnp.zeros_like(p.bias)), WEIGHTS)[0]
    np.testing.assert_allclose(losses, want, rtol=3e-6)


@pytest.mark.parametrize("padding", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("options", [{"chunk_frames": 3}, {"implementation": "reference"}])
def test_padding_content_never_matters(problem, padding, options):
    p = problem()
    beyond = lambda x, lengths: np.arange(x.shape[1]) >= np.asarray(lengths)[:, None]
    frames, cells = beyond(p.encoded, p.encoded_lengths), beyond(p.predicted, p.label_lengths + 1)
    dirty = p._replace(
        encoded=jnp.where(frames[..., None], padding, p.encoded),
        predicted=jnp.where(cells[..., None], padding, p.predicted),
        labels=jnp.where(beyond(p.labels, p.label_lengths), -77777, p.labels),
    )
    losses, gradients = losses_and_gradients(p, WEIGHTS, **options)
    dirty_losses, dirty_gradients = losses_and_gradients(dirty, WEIGHTS, **options)
    np.testing.assert_array_equal(dirty_losses, losses)
    jax.tree.map(np.testing.assert_array_equal, dirty_gradients, gradients)
    assert not np.asarray(gradients[0])[frames].any()
    assert not np.asarray(gradients[1])[cells].any()


def test_a_batch_is_its_utterances(problem):
    p = problem()
    losses, _ = losses_and_gradients(p, WEIGHTS, chunk_frames=3)
    loss = jax.jit(partial(transducer_loss, chunk_frames=3))
    for b in range(4):
        row = [x if x is p.kernel or x is p.bias else x[b : b + 1] for x in p]
        np.testing.assert_allclose(loss(*row), losses[b : b + 1], rtol=2e-6)


def test_zero_frames_give_inf_and_add_nothing_to_any_gradient(problem):
    p = problem()._replace(encoded_lengths=jnp.array([7, 0, 1, 0]))
    losses, gradients = losses_and_gradients(p, WEIGHTS, chunk_frames=3)
    np.testing.assert_array_equal(np.isinf(losses), [False, True, False, True])
    alive = [0, 2]
    kept = p._replace(**{k: getattr(p, k)[jnp.array(alive)] for k in PER_UTTERANCE})
    want = reference(kept, WEIGHTS[alive])[1]
    assert_close((gradients[0][::2], gradients[1][::2], *gradients[2:]), want)
    assert not gradients[0][1::2].any() and not gradients[1][1::2].any()


@pytest.mark.parametrize("label", [-1, 6, 99])
def test_a_label_outside_the_vocabulary_gives_nan(problem, label):
    p = problem()
    p = p._replace(labels=p.labels.at[0, 1].set(label))
    losses, gradients = losses_and_gradients(p, np.ones(4, np.float32), chunk_frames=3)
    np.testing.assert_array_equal(np.isnan(losses), [True, False, False, False])
    assert np.isnan(gradients[0][0]).any() and np.isfinite(gradients[0][1:]).all()
    logits = jnp.zeros((4, 8, 6, 6))
    assert np.isnan(rnnt_loss(logits, *p.integers)[0])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint32"])
def test_any_integer_type(problem, dtype):
    p = problem()
    other = p._replace(**{k: getattr(p, k).astype(dtype) for k in p._fields[4:]})
    loss = lambda p: transducer_loss(*p, chunk_frames=3)
    np.testing.assert_array_equal(loss(other), loss(p))
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 6, 6)), jnp.float32)
    np.testing.assert_array_equal(
        rnnt_loss(logits, *other.integers), rnnt_loss(logits, *p.integers)
    )


def test_a_batch_without_utterances(problem):
    p = problem()
    none = p._replace(**{k: getattr(p, k)[:0] for k in PER_UTTERANCE})
    losses, gradients = losses_and_gradients(none, np.ones(0, np.float32))
    assert losses.shape == (0,) and not gradients[2].any()
    assert rnnt_loss(jnp.zeros((0, 8, 6, 6)), *none.integers).shape == (0,)


def test_an_axis_without_frames(problem):
    p = problem(frames=0)._replace(encoded_lengths=jnp.zeros(4, jnp.int32))
    losses, gradients = losses_and_gradients(p, WEIGHTS)
    assert np.isinf(losses).all() and not any(g.any() for g in gradients)


def test_under_vmap_and_checkpoint(problem):
    problems = [problem(seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *problems)

    @jax.jit
    @jax.vmap
    def run(p):
        loss = jax.checkpoint(partial(transducer_loss, chunk_frames=3))
        return jax.grad(lambda *floats: WEIGHTS @ loss(*floats, *p.integers), FLOATS)(*p.floats)

    gradients = run(stacked)
    for i, p in enumerate(problems):
        assert_close([g[i] for g in gradients], reference(p, WEIGHTS)[1])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_lower_precision_costs_only_the_rounding_of_products(problem, dtype):
    p = problem([30, 21], [8, 5], frames=30, vocabulary=12, width=16)
    rounded = p._replace(**{k: getattr(p, k).astype(dtype) for k in p._fields[:4]})
    losses, gradients = losses_and_gradients(rounded, np.ones(2, np.float32), chunk_frames=7)
    float32 = rounded._replace(**{k: getattr(rounded, k).astype("float32") for k in p._fields[:4]})
    want_losses, want_gradients = reference(float32, [1.0, 1.0])
    eps = float(jnp.finfo(dtype).eps)
    assert losses.dtype == jnp.float32 and {g.dtype for g in gradients} == {jnp.dtype(dtype)}
    # Rounding errors are half an eps, of both signs on about 40 edges, and mostly cancel.
    np.testing.assert_allclose(losses, want_losses, rtol=eps)
    assert_close(gradients, want_gradients, atol=2 * eps)


MANY = [7, 4, 1, 2, 6, 5, 3, 7], [3, 0, 2, 5, 1, 1, 4, 2]


@pytest.mark.parametrize("data, model", [(8, 1), (4, 2)])
def test_sharding_batch_and_vocabulary_changes_nothing_and_gathers_nothing(problem, data, model):
    p = problem(*MANY)
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((data, model), ("data", "model"), axis_types=auto)
    specs = {"kernel": jax.P(None, "model"), "bias": jax.P("model")}
    places = [jax.NamedSharding(mesh, specs.get(k, jax.P("data"))) for k in p._fields]
    weights = jnp.linspace(1.0, 2.0, 8)

    def weighted(*p):
        losses = transducer_loss(*p, chunk_frames=2)
        return losses @ weights, losses

    step = jax.jit(
        jax.value_and_grad(weighted, FLOATS, has_aux=True),
        out_shardings=((jax.NamedSharding(mesh, jax.P()), places[0]), tuple(places[:4])),
    )
    args = jax.device_put(tuple(p), tuple(places))
    text = step.lower(*args).compile().as_text()
    for exchange in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert exchange not in text
    assert "all-reduce" in text  # of the kernel's gradient; without it nothing was sharded
    (_, losses), gradients = step(*args)
    want = reference(p, weights)
    np.testing.assert_allclose(losses, want[0], rtol=3e-6)
    assert_close(gradients, want[1])


@pytest.mark.parametrize("utterances_per_group", [None, 2])
def test_under_shard_map(problem, utterances_per_group):
    p = problem(*MANY)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = tuple(jax.P() if k in ("kernel", "bias") else jax.P("data") for k in p._fields)
    loss = partial(transducer_loss, chunk_frames=2, utterances_per_group=utterances_per_group)
    sharded = jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=jax.P("data"))
    weights = jnp.linspace(1.0, 2.0, 8)
    step = jax.jit(jax.grad(lambda *x: sharded(*x, *p.integers) @ weights, FLOATS))
    assert_close(step(*p.floats), reference(p, weights)[1])


def test_groups_change_nothing_for_any_cotangents(problem):
    """Equal, different and zero cotangents, ignoring an utterance without an alignment."""
    p = problem(*MANY)._replace(encoded_lengths=jnp.array([0, *MANY[0][1:]]))
    alike = np.array([9, 2, 2, 2, 2, 2, 2, 2], np.float32)
    for weights in (alike, np.linspace(-1, 2, 8, dtype=np.float32), 0 * alike):
        plain = losses_and_gradients(p, weights, chunk_frames=3)
        grouped = losses_and_gradients(p, weights, chunk_frames=3, utterances_per_group=4)
        np.testing.assert_array_equal(grouped[0], plain[0])
        assert_close(grouped[1], plain[1])


def test_memory_is_a_small_fraction_of_the_logits():
    """At B 8, T 128, U 40, V 512, D 256 the logits alone take 86 MB."""
    float32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    integer = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    floats = float32(8, 128, 256), float32(8, 41, 256), float32(256, 512), float32(512)
    integers = integer(8, 40), integer(8), integer(8)

    ours = temporaries(*floats, *integers)
    assert ours <= 14.5e6
    assert ours < temporaries(*floats, *integers, implementation="reference") / 10


def temporaries(*shapes, **options):
    total = lambda *p: transducer_loss(*p, **options).sum()
    compiled = jax.jit(jax.value_and_grad(total, FLOATS)).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_planes_is_that_of_a_group():
    """At B 64, T 1000, U 200 a plane takes 51 MB, a plane of four utterances 3 MB."""
    bfloat16 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    integer = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    floats = bfloat16(64, 1000, 16), bfloat16(64, 201, 16), bfloat16(16, 20), bfloat16(20)
    shapes = *floats, integer(64, 200), integer(64), integer(64)
    grouped = temporaries(*shapes, utterances_per_group=8)
    assert grouped < 150e6
    assert grouped < temporaries(*shapes, utterances_per_group=64) / 5


def test_learns_to_copy():
    """Greedy decoding of a toy task, two frames per label, must find all labels."""
    rng = np.random.default_rng(0)
    steps = rng.integers(1, 5, (16, 5))
    symbols = 1 + np.cumsum(steps, axis=1) % 5  # 1..5, neighbors differ
    frames, labels = (
        np.repeat(np.eye(6, dtype=np.float32)[symbols], 2, axis=1),
        jnp.asarray(symbols),
    )
    lengths = jnp.full(16, 10), jnp.full(16, 5)
    normal = lambda seed, *shape: 0.3 * jax.random.normal(jax.random.key(seed), shape)
    params = normal(0, 6, 24), normal(1, 6, 24), normal(2, 24, 6), jnp.zeros(6)
    optimizer = optax.adam(0.03)

    def loss(params):
        encoder, embedding, kernel, bias = params
        predicted = embedding[jnp.pad(labels, ((0, 0), (1, 0)))]
        return transducer_loss(frames @ encoder, predicted, kernel, bias, labels, *lengths).mean()

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=200)[0][0]

    encoder, embedding, kernel, bias = (np.asarray(x) for x in train(params))

    def greedy(frames):
        emitted = [0]
        for frame in frames @ encoder:
            for _ in range(3):
                symbol = int(np.argmax(np.tanh(frame + embedding[emitted[-1]]) @ kernel + bias))
                if symbol == 0:
                    break
                emitted.append(symbol)
        return emitted[1:]

    assert [greedy(x) for x in frames] == symbols.tolist()


def test_imports_nothing_but_jax():
    code = (
        "import sys, asr_jax.losses as losses; assert losses.__all__;"
        "loaded = {m.split('.')[0] for m in sys.modules};"
        "sys.exit(str(loaded & {'flax', 'optax', 'orbax', 'grain', 'sentencepiece', 'tensorflow'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip() == "set()"
