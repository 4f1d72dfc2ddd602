"""Strided convolutions that make one frame of four or eight before the first block.

Frame t of the result sees features factor * (t - 1) + 1 to factor * (t + 1) - 1: its own share of
them, to the end, and the share before. So features may come piece by piece, `following`.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from asr_jax.layers.length import exceeds, frame_mask, halved, subsampled
from asr_jax.layers.linear import Linear

# What is convolved at a time: 80 seconds, longer than what is trained on. All at once, the first
# convolution would make 15 GB of an hour for a wide model.
PIECE_FRAMES = 8192


@jax.custom_vjp
def rectify(x: Float[Array, "B T F C"], real: Bool[Array, "B T"]) -> Float[Array, "B T F C"]:
    """max(x, 0), and zeros where a frame is not real.

    For the gradient it keeps its result, which the layer behind it keeps anyway.
    """
    return jnp.where(real[..., None, None], jax.nn.relu(x), 0)


def _rectify_fwd(x, real):
    # XLA would compute y once more from x in the backward pass, and keep both.
    y = jax.lax.optimization_barrier(rectify(x, real))
    return y, y


def _rectify_bwd(y, gradient):
    return jnp.where(y > 0, gradient, 0), None


rectify.defvjp(_rectify_fwd, _rectify_bwd)


def _real(
    starts: Int[Array, " B"] | None, lengths: Int[Array, " B"], stride: int, frames: int
) -> Bool[Array, "B T"]:
    """Which of the frames after a stride come of frames from `starts` on, before `lengths`."""
    real = frame_mask(subsampled(lengths, stride), frames)
    return real if starts is None else real & ~frame_mask(starts // stride, frames)


class SeparableConvolution(nnx.Module):
    """A 3x3 convolution of stride 2 of every channel by itself, then a product over channels."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        initializer = nnx.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=(0, 1)
        )
        self.depthwise = nnx.Param(initializer(rngs.params(), (3, 3, channels)))
        self.pointwise = Linear(channels, channels, rngs=rngs)

    def __call__(self, x: Float[Array, "B T F C"]) -> Float[Array, "B T2 F2 C"]:
        frames, bins = halved(x.shape[1]), halved(x.shape[2])
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = self.depthwise[...].astype(x.dtype)
        # As in layers/convolution.py: a sum of shifted copies, every second frame and bin of them.
        copies = [
            x[:, i : i + 2 * frames - 1 : 2, j : j + 2 * bins - 1 : 2] * taps[i, j]
            for i in range(3)
            for j in range(3)
        ]
        return self.pointwise(functools.reduce(jnp.add, copies))


class Subsampling2D(nnx.Module):
    """Two 3x3 convolutions of stride 2 over time and mel bins, three for a factor of 8, and a
    projection.

    What arXiv 2005.08100's implementations have; its gradient is dear on a CPU. `separable`: all
    but the first convolution are, as in FastConformer (arXiv 2305.05084, section 2.1).
    """

    def __init__(
        self,
        mel_bins: int,
        width: int,
        *,
        channels: int,
        factor: int = 4,
        separable: bool = False,
        rngs: nnx.Rngs,
    ):
        convolution = functools.partial(
            nnx.Conv, kernel_size=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)), rngs=rngs
        )

        def inner():
            if separable:
                return SeparableConvolution(channels, rngs=rngs)
            return convolution(channels, channels)

        self.first = convolution(1, channels)
        self.second = inner()
        self.third = inner() if factor == 8 else None
        self.project = Linear(subsampled(mel_bins, factor) * channels, width, rngs=rngs)
        self.factor = factor

    def __call__(
        self,
        features: Float[Array, "B T F"],
        lengths: Int[Array, " B"],
        *,
        starts: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B T2 D"], Int[Array, " B"]]:
        """Padding may hold anything. Returns frames and their lengths, ceil(length / factor).

        starts: multiples of the factor, what comes before is padding too.
        """
        real = functools.partial(_real, starts, lengths)
        features = jnp.where(real(1, features.shape[1])[..., None], features, 0)

        # The output of the first convolution is the largest tensor of all and quickly made: the
        # backward pass makes it again, rather than keep it while the blocks run.
        @jax.checkpoint
        def convolve(x):
            x = self.first(x)
            return self.second(rectify(x, real(2, x.shape[1])))

        x = convolve(features[..., None])
        x = rectify(x, real(4, x.shape[1]))
        if self.third is not None:
            x = self.third(x)
            x = rectify(x, real(8, x.shape[1]))
        return self.project(x.reshape(*x.shape[:2], -1)), subsampled(lengths, self.factor)


class Subsampling1D(nnx.Module):
    """Two or, for a factor of 8, three convolutions of kernel 3 and stride 2 over time, the mel
    bins being their channels.

    Each is one matrix product over its three taps: small models train several times faster so.
    """

    def __init__(
        self, mel_bins: int, width: int, *, channels: int, factor: int = 4, rngs: nnx.Rngs
    ):
        self.first = Linear(3 * mel_bins, channels, rngs=rngs)
        self.second = Linear(3 * channels, channels, rngs=rngs)
        self.third = Linear(3 * channels, channels, rngs=rngs) if factor == 8 else None
        self.project = Linear(channels, width, rngs=rngs)
        self.factor = factor

    def __call__(
        self,
        features: Float[Array, "B T F"],
        lengths: Int[Array, " B"],
        *,
        starts: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B T2 D"], Int[Array, " B"]]:
        """As Subsampling2D."""
        real = functools.partial(_real, starts, lengths)
        x = jnp.where(real(1, features.shape[1])[..., None], features, 0)
        stride = 1
        for convolution in (self.first, self.second, self.third):
            if convolution is not None:
                x, stride = jax.nn.relu(convolution(_taps(x))), 2 * stride
                x = jnp.where(real(stride, x.shape[1])[..., None], x, 0)
        return self.project(x), subsampled(lengths, self.factor)


def _taps(x: Float[Array, "B T D"]) -> Float[Array, "B T2 D3"]:
    """Frames 2t - 1, 2t and 2t + 1 side by side, zeros beyond the ends."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0)))
    even, odd = x[:, ::2], x[:, 1::2]
    before = jnp.pad(odd, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    return jnp.concatenate([before, even, odd], axis=-1)


Subsampling = Subsampling1D | Subsampling2D


def following(
    subsampling: Subsampling,
    tail: Float[Array, "B factor F"],
    features: Float[Array, "B T F"],
    lengths: Int[Array, " B"],
    *,
    begins: Bool[Array, " B"],
) -> tuple[Float[Array, "B factor F"], Float[Array, "B T2 D"], Int[Array, " B"]]:
    """The frames of features that go on where others ended, of which `tail` is the last share.

    `begins` where there are no others; what the tail holds does not matter there. T is a multiple
    of the factor, and only the last features' lengths are less. Returns the tail that comes next.
    """
    factor = subsampling.factor
    features = jnp.where(frame_mask(lengths, features.shape[1])[..., None], features, 0)
    joined = jnp.concatenate([tail, features], axis=1)
    starts = jnp.where(begins, factor, 0)
    x, joined_lengths = subsampling(joined, factor + lengths, starts=starts)
    # What it makes of the tail, whose predecessors are not here, was made before.
    return joined[:, -factor:], x[:, 1:], joined_lengths - 1


def subsample(
    subsampling: Subsampling, features: Float[Array, "B T F"], lengths: Int[Array, " B"]
) -> tuple[Float[Array, "B T2 D"], Int[Array, " B"]]:
    """subsampling(features, lengths), long ones piece by piece."""
    batch, frames, bins = features.shape
    if not exceeds(frames, PIECE_FRAMES):
        return subsampling(features, lengths)
    pieces = -(-frames // PIECE_FRAMES)
    padded = jnp.pad(features, ((0, 0), (0, pieces * PIECE_FRAMES - frames), (0, 0)))
    split = jnp.moveaxis(padded.reshape(batch, pieces, PIECE_FRAMES, bins), 1, 0)

    @jax.checkpoint
    def run(tail, piece):
        features, first = piece
        real = jnp.clip(lengths - first, 0, PIECE_FRAMES)
        begins = jnp.broadcast_to(first == 0, real.shape)
        tail, x, _ = following(subsampling, tail, features, real, begins=begins)
        return tail, x

    tail = jnp.zeros((batch, subsampling.factor, bins), features.dtype)
    _, x = jax.lax.scan(run, tail, (split, PIECE_FRAMES * jnp.arange(pieces)))
    x = jnp.moveaxis(x, 0, 1).reshape(batch, -1, x.shape[-1])
    return x[:, : subsampled(frames, subsampling.factor)], subsampled(lengths, subsampling.factor)
