"""Frozen parameters: which of them a pattern selects, and that they keep their bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr_jax.config import OptimizerConfig
from asr_jax.training.frozen import frozen_mask, keep_frozen, without_gradients
from asr_jax.training.optimizer import make_optimizer

# Four blocks; two blocks each share a matrix.
PARAMS = {
    "encoder": {
        "blocks": {"own": {"kernel": np.ones((4, 2, 3))}, "shared": {"kernel": np.ones((2, 3, 3))}},
        "norm": {"bias": np.ones(3)},
    },
    "ctc_head": {"kernel": np.ones((3, 5)), "bias": np.ones(5)},
}


def chosen(*patterns):
    mask = frozen_mask(PARAMS, OptimizerConfig(frozen=patterns))
    blocks = mask["encoder"]["blocks"]
    return [blocks["own"]["kernel"].ravel().tolist(), blocks["shared"]["kernel"].ravel().tolist()]


def test_shared_parameters_are_frozen_only_if_all_their_blocks_are():
    assert chosen("encoder.*") == [[True] * 4, [True] * 2]
    assert chosen("encoder.blocks.[0-2].*") == [[True, True, True, False], [True, False]]
    assert chosen("encoder.blocks.2.*", "encoder.blocks.3.shared.*") == [
        [False, False, True, False],
        [False, True],
    ]
    mask = frozen_mask(PARAMS, OptimizerConfig(frozen=("*.bias",)))
    assert [bool(leaf.all()) for leaf in jax.tree.leaves(mask)] == [True, False, False, False, True]


def test_pattern_that_matches_nothing_or_everything_is_an_error():
    named = r"'encodr.\*': matches no parameter.*encoder.blocks.0.own"
    with pytest.raises(ValueError, match=named):
        frozen_mask(
            PARAMS,
            OptimizerConfig(
                frozen=(
                    "encoder.*",
                    "encodr.*",
                )
            ),
        )
    with pytest.raises(ValueError, match="leaves no parameter to train"):
        frozen_mask(
            PARAMS,
            OptimizerConfig(
                frozen=(
                    "encoder.*",
                    "ctc_head.*",
                )
            ),
        )


def trainable(params, **patterns):
    """Return the names of the parameters of which any part is trained."""
    mask = frozen_mask(params, OptimizerConfig(**patterns))
    return {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, frozen in jax.tree_util.tree_leaves_with_path(mask)
        if not frozen.all()
    }


def test_only_trained_patterns_and_adapters_change():
    assert trainable(PARAMS, trained=("ctc_head.*",)) == {"ctc_head.kernel", "ctc_head.bias"}
    own = {"own": PARAMS["encoder"]["blocks"]["own"] | {"down": np.ones((4, 2, 1))}}
    adapted = PARAMS | {"encoder": {"blocks": own, "norm": PARAMS["encoder"]["norm"]}}
    assert trainable(adapted) == {"encoder.blocks.own.down"}
    both = {"encoder.blocks.own.down", "ctc_head.bias"}
    assert trainable(adapted, trained=("*_head.*",), frozen=("*.kernel",)) == both
    # The low-rank matrices of a layer with a diagonal are no adapter (layers/residual.py).
    residual = {"a": {"down": np.ones(2), "diagonal": np.ones(2)}, "b": {"kernel": np.ones(2)}}
    assert len(trainable(residual)) == 3
    with pytest.raises(ValueError, match="optimizer.trained = 'x': matches no parameter"):
        trainable(PARAMS, trained=("x",))


def test_frozen_parameters_get_no_gradient_and_keep_their_bits():
    mask = frozen_mask(
        PARAMS,
        OptimizerConfig(
            frozen=(
                "encoder.blocks.[01].*",
                "ctc_head.bias",
            )
        ),
    )
    gradients = jax.grad(
        lambda p: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(without_gradients(p, mask)))
    )(jax.tree.map(jnp.asarray, PARAMS))
    jax.tree.map(
        lambda g, p, m: np.testing.assert_array_equal(g, np.where(m, 0, 2 * p)),
        gradients,
        PARAMS,
        mask,
    )
    # Adding zero to negative zero gives positive zero.
    old = jax.tree.map(lambda p: -0.0 * p, PARAMS)
    after = keep_frozen(jax.tree.map(lambda p: p + 0.0, old), old, mask)
    for leaf, is_frozen in zip(*map(jax.tree.leaves, (after, mask))):
        np.testing.assert_array_equal(np.signbit(leaf), np.broadcast_to(is_frozen, leaf.shape))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_entirely_frozen_parameters_have_no_moments(kind):
    options = dict(kind=kind, warmup_steps=0, weight_decay=0.5)
    params = jax.tree.map(jnp.asarray, PARAMS)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))

    def stepped(*patterns):
        optimizer = make_optimizer(OptimizerConfig(**options, frozen=patterns), steps=10)
        state = optimizer.init(params)
        zeros = frozen_mask(params, OptimizerConfig(frozen=patterns))
        gradients = jax.tree.map(lambda p, m: jnp.where(m, 0, p), params, zeros)
        return size(state), optimizer.update(gradients, state, params)[0]

    full_size, plain = stepped()
    reduced_size, updates = stepped("encoder.*")
    moments = {"adamw": 2, "muon": 1}[kind]
    fewer = moments * size(params["encoder"]["blocks"]) + 2 * size(params["encoder"]["norm"])
    assert full_size - reduced_size == fewer
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates["encoder"]))
    assert updates["ctc_head"]["kernel"].all() and plain["encoder"]["norm"]["bias"].all()
