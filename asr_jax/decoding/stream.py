"""A stream of samples to labels, chunk by chunk."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from asr_jax.config import Config, chunk_frames
from asr_jax.decoding.greedy import GreedyState, greedy_start, greedy_step
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.features.frames import hop_samples
from asr_jax.features.logmel import log_mel
from asr_jax.models.encoder import EncoderState
from asr_jax.models.transducer import Transducer


class StreamState(NamedTuple):
    """What a stream leaves behind for its next chunk: arrays of fixed shapes."""

    encoder: EncoderState
    search: GreedyState


def chunk_features(config: Config) -> int:
    """Frames of log-mel in a chunk of decoding.chunk_ms."""
    return chunk_frames(config.decoding.chunk_ms, config) * config.encoder.subsampling_factor


def chunk_samples(config: Config) -> int:
    """S of `stream_step`: those of a chunk, and a hop before and behind it."""
    return (chunk_features(config) + 2) * hop_samples(config.features)


def start_stream(model: Transducer, batch: int, *, config: Config) -> StreamState:
    """Before the first chunk."""
    frames = chunk_frames(config.decoding.chunk_ms, config)
    return StreamState(model.encoder.start(batch, chunk_frames=frames), greedy_start(model, batch))


def stream_step(
    model: Transducer,
    state: StreamState,
    samples: Float32[Array, "B S"],
    sample_lengths: Int32[Array, " B"],
    begins: Bool[Array, " B"],
    *,
    config: Config,
) -> tuple[StreamState, Hypotheses]:
    """The next chunk of every stream: its labels, at frames counted from the chunk's beginning.

    Chunk by chunk they are those of greedy search on the whole recording with the same
    decoding.chunk_ms.

    Args:
        samples: of the chunk, a hop before it and a hop behind it, as its first and last frame of
            log-mel reach there. Where the stream begins there is no hop before, where it ends
            nothing behind.
        sample_lengths: how many of the samples are real. Fewer than `chunk_samples`, of a stream
            that begins without a hop less, say that it ends.
        begins: the stream's first chunk.
    """
    number = chunk_features(config)
    mel, lengths = log_mel(samples, sample_lengths, config.features)
    features = jnp.where(begins[:, None, None], mel[:, :number], mel[:, 1 : number + 1])
    lengths = jnp.clip(lengths - jnp.where(begins, 0, 1), 0, number)
    encoder, encoded, lengths = model.encoder.step(state.encoder, features, lengths)
    search, found = greedy_step(
        model,
        state.search,
        encoded,
        lengths,
        max_symbols_per_frame=config.decoding.max_symbols_per_frame,
    )
    return StreamState(encoder, search), found
