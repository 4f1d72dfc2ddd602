"""Streaming search: samples to labels, chunk by chunk."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int32

from asr_jax.config import Config, chunk_frames
from asr_jax.decoding.greedy import GreedyState, greedy_start, greedy_step
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.features.frames import hop_samples
from asr_jax.features.logmel import log_mel
from asr_jax.models.encoder import EncoderState
from asr_jax.models.transducer import Transducer


class StreamState(NamedTuple):
    """The state of a stream between chunks: arrays of fixed shapes."""

    encoder: EncoderState
    search: GreedyState


def chunk_features(config: Config) -> int:
    """Return the frames of log-mel in a chunk of decoding.chunk_ms."""
    return chunk_frames(config.decoding.chunk_ms, config) * config.encoder.subsampling_factor


def chunk_samples(config: Config) -> int:
    """Return S of `stream_step`: the samples of a chunk, and one hop on either side."""
    return (chunk_features(config) + 2) * hop_samples(config.features)


def cannot_stream(config: Config) -> str:
    """Return why a model of this config cannot recognize a stream; empty if it can."""
    if config.objective.kind not in ("transducer", "tdt", "hat") or config.decoding.head == "ctc":
        return "needs a transducer, tdt or hat model, not CTC or attention"
    if not config.encoder.chunk_ms:
        return "the model was not trained for streaming: its encoder.chunk_ms is empty"
    if config.decoding.beam:
        return "needs --decoder greedy"
    return ""


def start_stream(model: Transducer, batch: int, *, config: Config) -> StreamState:
    """Return the state before the first chunk."""
    frames = chunk_frames(config.decoding.chunk_ms, config)
    return StreamState(model.encoder.start(batch, chunk_frames=frames), greedy_start(model, batch))


def encode_chunk(
    model: Transducer,
    state: EncoderState,
    samples: Float32[Array, "B S"],
    sample_lengths: Int32[Array, " B"],
    *,
    config: Config,
) -> tuple[EncoderState, Float[Array, "B C D"], Int[Array, " B"]]:
    """Encode the next chunk of every stream; return its C frames and how many of them are real.

    Args:
        samples: S = `chunk_samples`: the chunk and one hop on either side, into which its first and
            last frame of log-mel reach. Samples before the start of the stream may be anything.
        sample_lengths: real samples, including the hop before the chunk. Fewer than S end the
            stream.
    """
    hop, number = hop_samples(config.features), chunk_features(config)
    begins = state.seen == 0
    # Log-mel reflects a recording at its start, so that must be the first sample.
    samples = jnp.where(begins[:, None], jnp.roll(samples, -hop, axis=1), samples)
    sample_lengths = jnp.maximum(sample_lengths - jnp.where(begins, hop, 0), 0)
    mel, lengths = log_mel(samples, sample_lengths, config.features)
    features = jnp.where(begins[:, None, None], mel[:, :number], mel[:, 1 : number + 1])
    lengths = jnp.clip(lengths - jnp.where(begins, 0, 1), 0, number)
    return model.encoder.step(state, features, lengths)


def stream_step(
    model: Transducer,
    state: StreamState,
    samples: Float32[Array, "B S"],
    sample_lengths: Int32[Array, " B"],
    *,
    config: Config,
) -> tuple[StreamState, Hypotheses]:
    """Recognize the next chunk of every stream, with arguments as for `encode_chunk`.

    Frames count from the start of the chunk. Over all chunks the labels equal those of greedy
    search on the whole recording with the same decoding.chunk_ms.
    """
    encoder, encoded, lengths = encode_chunk(
        model, state.encoder, samples, sample_lengths, config=config
    )
    search, hypotheses = greedy_step(
        model,
        state.search,
        encoded,
        lengths,
        max_symbols_per_frame=config.decoding.max_symbols_per_frame,
    )
    return StreamState(encoder, search), hypotheses
