"""AdamW (arXiv 1711.05101) with warm-up, cosine decay and clipping."""

import jax
import optax

from asr_jax.config import OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, *, steps: int) -> optax.Schedule:
    """Linear rise to the peak, then a cosine down to the final share at the last step."""
    warmup_steps = min(config.warmup_steps, steps - 1)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else config.peak_learning_rate,
        peak_value=config.peak_learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=steps,
        end_value=config.peak_learning_rate * config.final_learning_rate_share,
    )


def make_optimizer(config: OptimizerConfig, *, steps: int) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate_schedule(config, steps=steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=_decays,
        ),
    )


def _decays(params):
    """True for matrices and convolutions: names, as stacked biases have two axes as well."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ("kernel", "depthwise"), params
    )
