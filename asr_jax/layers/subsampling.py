"""Subsampling by four or eight with strided convolutions, before the first block.

Frame t of the result sees the features factor * (t - 1) + 1 to factor * (t + 1) - 1: its own
`factor` features and those of the frame before. So features may come in pieces (`following`).

Causal convolutions have padding of 2 frames before the first and none after the last that they
need, in place of 1 and 1: frame t sees the features factor * (t - 2) + 2 to factor * t. The strides
make that the same as the other convolutions of features that come after `lead` = factor - 1 frames
of padding, and so it is computed.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from asr_jax.layers.length import exceeds, frame_mask, halved, subsampled
from asr_jax.layers.linear import Linear

# Features in a piece: 80 seconds, longer than training utterances. In one piece, the output of a
# wide model's first convolution would take 15 GB for an hour of audio.
PIECE_FRAMES = 8192


@jax.custom_vjp
def rectify(x: Float[Array, "B T F C"], real: Bool[Array, "B T"]) -> Float[Array, "B T F C"]:
    """Return max(x, 0) for real frames, and zeros for padding.

    The gradient needs only the result, which the next layer keeps anyway.
    """
    return jnp.where(real[..., None, None], jax.nn.relu(x), 0)


def _rectify_fwd(x, real):
    # Without the barrier, XLA recomputes y from x in the backward pass, and keeps both.
    y = jax.lax.optimization_barrier(rectify(x, real))
    return y, y


def _rectify_bwd(y, gradient):
    return jnp.where(y > 0, gradient, 0), None


rectify.defvjp(_rectify_fwd, _rectify_bwd)


def _real(
    starts: Int[Array, " B"] | None, lengths: Int[Array, " B"], stride: int, frames: int
) -> Bool[Array, "B T"]:
    """Return which frames after a stride come from features between `starts` and `lengths`."""
    real = frame_mask(subsampled(lengths, stride), frames)
    return real if starts is None else real & ~frame_mask(starts // stride, frames)


def _mel_padding(*, causal: bool) -> tuple[int, int]:
    """Return the zeros before and after the bins: what causal convolutions do to both axes."""
    return (2, 1) if causal else (1, 1)


class SeparableConvolution(nnx.Module):
    """A depthwise 3x3 convolution of stride 2, then a pointwise product over channels."""

    def __init__(self, channels: int, *, causal: bool = False, rngs: nnx.Rngs):
        initializer = nnx.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=(0, 1)
        )
        self.depthwise = nnx.Param(initializer(rngs.params(), (3, 3, channels)))
        self.pointwise = Linear(channels, channels, rngs=rngs)
        self.mel_padding = _mel_padding(causal=causal)

    def __call__(self, x: Float[Array, "B T F C"]) -> Float[Array, "B T2 F2 C"]:
        frames, bins = halved(x.shape[1]), halved(x.shape[2] + sum(self.mel_padding) - 2)
        x = jnp.pad(x, ((0, 0), (1, 1), self.mel_padding, (0, 0)))
        taps = self.depthwise[...].astype(x.dtype)
        # A sum of shifted copies, as in layers/convolution.py, of every second frame and bin.
        copies = [
            x[:, i : i + 2 * frames - 1 : 2, j : j + 2 * bins - 1 : 2] * taps[i, j]
            for i in range(3)
            for j in range(3)
        ]
        return self.pointwise(functools.reduce(jnp.add, copies))


class Subsampling2D(nnx.Module):
    """Two 3x3 convolutions of stride 2 over time and mel bins, three for a factor of 8, and a
    projection.

    Implementations of arXiv 2005.08100 use it; its gradient is slow on a CPU. With `separable`, all
    but the first convolution are separable, as in FastConformer (arXiv 2305.05084, section 2.1).
    Causal convolutions have their padding along the mel bins too, as NeMo's CausalConv2D.
    """

    def __init__(
        self,
        mel_bins: int,
        width: int,
        *,
        channels: int,
        factor: int = 4,
        separable: bool = False,
        causal: bool = False,
        rngs: nnx.Rngs,
    ):
        padding = ((1, 1), _mel_padding(causal=causal))
        convolution = functools.partial(
            nnx.Conv, kernel_size=(3, 3), strides=(2, 2), padding=padding, rngs=rngs
        )

        def inner():
            if separable:
                return SeparableConvolution(channels, causal=causal, rngs=rngs)
            return convolution(channels, channels)

        self.first = convolution(1, channels)
        self.second = inner()
        self.third = inner() if factor == 8 else None
        self.lead = factor - 1 if causal else 0
        bins = subsampled(mel_bins, factor, lead=self.lead)
        self.project = Linear(bins * channels, width, rngs=rngs)
        self.factor = factor

    def __call__(
        self,
        features: Float[Array, "B T F"],
        lengths: Int[Array, " B"],
        *,
        starts: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B T2 D"], Int[Array, " B"]]:
        """Return frames and their lengths, ceil(length / factor). Padding may hold anything.

        Args:
            starts: features before these are padding too: a multiple of the factor, and the
                `lead` in addition where a recording begins. None: 0.
        """
        real = functools.partial(_real, starts, lengths)
        features = jnp.where(real(1, features.shape[1])[..., None], features, 0)

        # The output of the first convolution is the largest tensor of all and fast to compute, so
        # the backward pass recomputes it.
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
    """Two convolutions of kernel 3 and stride 2 over time, three for a factor of 8, and a
    projection. The mel bins are the input channels.

    Each convolution is one matrix product over its three taps, with which small models train
    several times faster.
    """

    def __init__(
        self,
        mel_bins: int,
        width: int,
        *,
        channels: int,
        factor: int = 4,
        causal: bool = False,
        rngs: nnx.Rngs,
    ):
        self.first = Linear(3 * mel_bins, channels, rngs=rngs)
        self.second = Linear(3 * channels, channels, rngs=rngs)
        self.third = Linear(3 * channels, channels, rngs=rngs) if factor == 8 else None
        self.project = Linear(channels, width, rngs=rngs)
        self.factor = factor
        self.lead = factor - 1 if causal else 0

    def __call__(
        self,
        features: Float[Array, "B T F"],
        lengths: Int[Array, " B"],
        *,
        starts: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B T2 D"], Int[Array, " B"]]:
        """Return frames and their lengths, like Subsampling2D."""
        real = functools.partial(_real, starts, lengths)
        x = jnp.where(real(1, features.shape[1])[..., None], features, 0)
        stride = 1
        for convolution in (self.first, self.second, self.third):
            if convolution is not None:
                x, stride = jax.nn.relu(convolution(_taps(x))), 2 * stride
                x = jnp.where(real(stride, x.shape[1])[..., None], x, 0)
        return self.project(x), subsampled(lengths, self.factor)


def _taps(x: Float[Array, "B T D"]) -> Float[Array, "B T2 D3"]:
    """Concatenate frames 2t - 1, 2t and 2t + 1, with zeros beyond the ends."""
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
    seen: Int[Array, " B"],
) -> tuple[Float[Array, "B factor F"], Float[Array, "B T2 D"], Int[Array, " B"]]:
    """Subsample the next features of a stream; return the next tail, the frames and their lengths.

    Args:
        tail: the last `factor` features before these; ignored where nothing was seen.
        features: T, a multiple of the factor, features. A stream begins with the `lead`, features
            that may hold anything.
        lengths: features up to the last real one: T, except at the end of the stream.
        seen: frames returned before.
    """
    factor = subsampling.factor
    features = jnp.where(frame_mask(lengths, features.shape[1])[..., None], features, 0)
    combined = jnp.concatenate([tail, features], axis=1)
    starts = jnp.maximum(factor + subsampling.lead - factor * seen, 0)
    x, combined_lengths = subsampling(combined, factor + lengths, starts=starts)
    # The first frame, of the tail without its predecessors, was returned before.
    return combined[:, -factor:], x[:, 1:], combined_lengths - 1


def subsample(
    subsampling: Subsampling, features: Float[Array, "B T F"], lengths: Int[Array, " B"]
) -> tuple[Float[Array, "B T2 D"], Int[Array, " B"]]:
    """Subsample whole recordings, after their `lead`; long features are computed in pieces.

    Lengths become `subsampled(lengths, factor, lead=lead)`.
    """
    lead, starts = subsampling.lead, None
    if lead:
        features = jnp.pad(features, ((0, 0), (lead, 0), (0, 0)))
        lengths, starts = jnp.where(lengths > 0, lengths + lead, 0), jnp.full_like(lengths, lead)
    batch, frames, bins = features.shape
    if not exceeds(frames, PIECE_FRAMES):
        return subsampling(features, lengths, starts=starts)
    pieces = -(-frames // PIECE_FRAMES)
    padded = jnp.pad(features, ((0, 0), (0, pieces * PIECE_FRAMES - frames), (0, 0)))
    split = jnp.moveaxis(padded.reshape(batch, pieces, PIECE_FRAMES, bins), 1, 0)

    @jax.checkpoint
    def run(tail, piece):
        features, first = piece
        real = jnp.clip(lengths - first, 0, PIECE_FRAMES)
        seen = jnp.broadcast_to(first // subsampling.factor, real.shape)
        tail, x, _ = following(subsampling, tail, features, real, seen=seen)
        return tail, x

    tail = jnp.zeros((batch, subsampling.factor, bins), features.dtype)
    _, x = jax.lax.scan(run, tail, (split, PIECE_FRAMES * jnp.arange(pieces)))
    x = jnp.moveaxis(x, 0, 1).reshape(batch, -1, x.shape[-1])
    return x[:, : subsampled(frames, subsampling.factor)], subsampled(lengths, subsampling.factor)
