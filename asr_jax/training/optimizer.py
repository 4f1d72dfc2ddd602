"""AdamW (arXiv 1711.05101) or Muon (arXiv 2502.16982) with warm-up, cosine decay and clipping."""

import jax
import optax
import optax.contrib
from jaxtyping import PyTree

from asr_jax.config import OptimizerConfig
from asr_jax.training.frozen import any_frozen, not_wholly_frozen

# Decay of the momentum that Muon orthogonalizes, and root mean square of its updates, as published.
_MUON_BETA, _MUON_RMS = 0.95, 0.2


def learning_rate_schedule(config: OptimizerConfig, *, steps: int) -> optax.Schedule:
    """Return a linear warm-up to the peak, then a cosine decay to the final ratio, which stays.

    The decay ends at `steps`, or at config.decay_steps if that is set.
    """
    steps = config.decay_steps or steps
    warmup_steps = min(config.warmup_steps, steps - 1)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else config.peak_learning_rate,
        peak_value=config.peak_learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=steps,
        end_value=config.peak_learning_rate * config.final_learning_rate_ratio,
    )


def make_optimizer(config: OptimizerConfig, *, steps: int) -> optax.GradientTransformation:
    """Return the optimizer that config.kind names, with clipping by global norm and the schedule.

    Its `init` raises ValueError if a pattern of config.frozen or config.trained matches no
    parameter, or if all parameters are frozen.
    """
    rate = learning_rate_schedule(config, steps=steps)
    if config.kind == "adamw":
        rule = optax.adamw(
            rate,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=_decays,
        )
    else:
        rule = optax.contrib.muon(
            rate,
            beta=_MUON_BETA,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            muon_weight_dimension_numbers=_orthogonalized,
            consistent_rms=_MUON_RMS,
        )
    rule = _without_frozen(rule, config)
    if config.encoder_learning_rate_ratio != 1:
        rule = _with_encoder_ratio(rule, config.encoder_learning_rate_ratio)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)


def _without_frozen(
    rule: optax.GradientTransformation, config: OptimizerConfig
) -> optax.GradientTransformation:
    """Return the rule without moments for parameters that never change."""
    masked = optax.masked(rule, lambda params: not_wholly_frozen(params, config))

    def init(params: PyTree) -> optax.OptState:
        return (masked if any_frozen(params, config) else rule).init(params)

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.OptState]:
        return (masked if any_frozen(params, config) else rule).update(updates, state, params)

    return optax.GradientTransformation(init, update)


def _with_encoder_ratio(
    rule: optax.GradientTransformation, ratio: float
) -> optax.GradientTransformation:
    """Return the rule with the encoder's updates scaled, weight decay included; its state stays."""

    def scale(path: jax.tree_util.KeyPath, update: jax.Array) -> jax.Array:
        return ratio * update if path[0].key == "encoder" else update

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.OptState]:
        updates, state = rule.update(updates, state, params)
        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(rule.init, update)


def _decays(params: PyTree) -> PyTree:
    """Return a tree of bools: true for parameters that decay, which are matrices and convolutions.

    They are selected by name, since stacked biases have two axes as well. A layer's additions to a
    shared matrix, including the diagonal, decay too: this draws the layers of a group together.
    """
    decaying = ("kernel", "depthwise", "down", "up", "diagonal")
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in decaying, params)


def _orthogonalized(params: PyTree) -> PyTree:
    """Return the matrix axes of every kernel except the output layers'; other leaves are None.

    Each layer of a stack is a matrix of its own. So are low-rank factors: an orthogonal update uses
    all of their few ranks. A diagonal is not a matrix: its entries are independent.
    """

    def axes(
        path: jax.tree_util.KeyPath, leaf: jax.Array
    ) -> optax.contrib.MuonDimensionNumbers | None:
        names = [part.key for part in path]
        is_output = names[-2:-1] in (["out"], ["ctc_head"]) and "blocks" not in names
        if names[-1] not in ("kernel", "down", "up") or is_output:
            return None
        # The input of a convolution's matrix includes its taps.
        first = 0 if "subsampling" in names else leaf.ndim - 2
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)
