"""Strided convolutions that make one frame of four before the first block."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from asr_jax.layers.length import frame_mask, halved
from asr_jax.layers.linear import Linear


@jax.custom_vjp
def rectify(x: Float[Array, "B T F C"], lengths: Int[Array, " B"]) -> Float[Array, "B T F C"]:
    """max(x, 0), and zeros beyond the lengths.

    For the gradient it keeps its result, which the layer behind it keeps anyway.
    """
    return jnp.where(frame_mask(lengths, x.shape[1])[..., None, None], jax.nn.relu(x), 0)


def _rectify_fwd(x, lengths):
    # XLA would compute y once more from x in the backward pass, and keep both.
    y = jax.lax.optimization_barrier(rectify(x, lengths))
    return y, y


def _rectify_bwd(y, gradient):
    return jnp.where(y > 0, gradient, 0), None


rectify.defvjp(_rectify_fwd, _rectify_bwd)


class Subsampling2D(nnx.Module):
    """Two 3x3 convolutions of stride 2 over time and mel bins, then a projection.

    What arXiv 2005.08100's implementations have; its gradient is dear on a CPU.
    """

    def __init__(self, mel_bins: int, width: int, *, channels: int, rngs: nnx.Rngs):
        convolution = functools.partial(
            nnx.Conv, kernel_size=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)), rngs=rngs
        )
        self.first = convolution(1, channels)
        self.second = convolution(channels, channels)
        self.project = Linear(halved(halved(mel_bins)) * channels, width, rngs=rngs)

    def __call__(
        self, features: Float[Array, "B T F"], lengths: Int[Array, " B"]
    ) -> tuple[Float[Array, "B T4 D"], Int[Array, " B"]]:
        """Padding may hold anything. Returns frames and their lengths, ceil(ceil(T / 2) / 2)."""
        half, quarter = halved(lengths), halved(halved(lengths))
        features = jnp.where(frame_mask(lengths, features.shape[1])[..., None], features, 0)

        # The output of the first convolution is the largest tensor of all and quickly made: the
        # backward pass makes it again, rather than keep it while the blocks run.
        @jax.checkpoint
        def convolve(x):
            return self.second(rectify(self.first(x), half))

        x = rectify(convolve(features[..., None]), quarter)
        return self.project(x.reshape(*x.shape[:2], -1)), quarter


class Subsampling1D(nnx.Module):
    """Two convolutions of kernel 3 and stride 2 over time, the mel bins being their channels.

    Each is one matrix product over its three taps: small models train several times faster so.
    """

    def __init__(self, mel_bins: int, width: int, *, channels: int, rngs: nnx.Rngs):
        self.first = Linear(3 * mel_bins, channels, rngs=rngs)
        self.second = Linear(3 * channels, channels, rngs=rngs)
        self.project = Linear(channels, width, rngs=rngs)

    def __call__(
        self, features: Float[Array, "B T F"], lengths: Int[Array, " B"]
    ) -> tuple[Float[Array, "B T4 D"], Int[Array, " B"]]:
        """Padding may hold anything. Returns frames and their lengths, ceil(ceil(T / 2) / 2)."""
        x = jnp.where(frame_mask(lengths, features.shape[1])[..., None], features, 0)
        for convolution in (self.first, self.second):
            x = jax.nn.relu(convolution(_taps(x)))
            lengths = halved(lengths)
            x = jnp.where(frame_mask(lengths, x.shape[1])[..., None], x, 0)
        return self.project(x), lengths


def _taps(x: Float[Array, "B T D"]) -> Float[Array, "B T2 D3"]:
    """Frames 2t - 1, 2t and 2t + 1 side by side, zeros beyond the ends."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0)))
    even, odd = x[:, ::2], x[:, 1::2]
    before = jnp.pad(odd, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    return jnp.concatenate([before, even, odd], axis=-1)
