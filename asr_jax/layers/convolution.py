"""The Conformer's convolution module."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from asr_jax.layers.length import frame_mask
from asr_jax.layers.linear import Linear, MakeLinear


@jax.custom_vjp
def depthwise_convolution(
    x: Float[Array, "B T D"], kernel: Float[Array, "K D"]
) -> Float[Array, "B T D"]:
    """Each channel with its own kernel of odd length K, zeros beyond the ends.

    Written as a sum of shifted copies, which XLA fuses: on a CPU several times faster than a
    grouped `lax.conv`. So is its gradient, which would scatter each copy back if left to JAX. Sums
    are taken in float32.
    """
    shifted, taps = _shifted(x, len(kernel)), kernel.astype(jnp.float32)
    return functools.reduce(jnp.add, [copy * tap for copy, tap in zip(shifted, taps)]).astype(
        x.dtype
    )


def _shifted(x, taps):
    padded = jnp.pad(x, ((0, 0), (taps // 2, taps // 2), (0, 0)))
    return [padded[:, k : k + x.shape[1]] for k in range(taps)]


def _depthwise_fwd(x, kernel):
    return depthwise_convolution(x, kernel), (x, kernel)


def _depthwise_bwd(residuals, gradient):
    x, kernel = residuals
    wide = gradient.astype(jnp.float32)
    taps = [jnp.sum(copy * wide, axis=(0, 1)) for copy in _shifted(x, len(kernel))]
    return depthwise_convolution(gradient, kernel[::-1]), jnp.stack(taps).astype(kernel.dtype)


depthwise_convolution.defvjp(_depthwise_fwd, _depthwise_bwd)


class ConvolutionModule(nnx.Module):
    """Norm, gated pointwise, depthwise, norm, swish, pointwise (arXiv 2005.08100, section 2.2).

    The second norm is a LayerNorm where the paper has BatchNorm: it has no running state and does
    not look across utterances.
    """

    def __init__(
        self, width: int, *, kernel_frames: int, linear: MakeLinear = Linear, rngs: nnx.Rngs
    ):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.gated = linear(width, 2 * width, rngs=rngs)
        initializer = nnx.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=0
        )
        self.depthwise = nnx.Param(initializer(rngs.params(), (kernel_frames, width)))
        self.depthwise_norm = nnx.LayerNorm(width, rngs=rngs)
        self.pointwise = linear(width, width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T D"], lengths: Int[Array, " B"]
    ) -> Float[Array, "B T D"]:
        """Frames beyond the lengths count as zeros for their neighbours."""
        value, gate = jnp.split(self.gated(self.norm(x)), 2, axis=-1)
        real = frame_mask(lengths, x.shape[1])[..., None]
        x = jnp.where(real, value * jax.nn.sigmoid(gate), 0)
        x = depthwise_convolution(x, self.depthwise[...].astype(x.dtype))
        return self.pointwise(jax.nn.silu(self.depthwise_norm(x)))
