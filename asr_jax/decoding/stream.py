"""Streaming search: samples to labels, chunk by chunk."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int32

from asr_jax.config import Config, chunk_frames
from asr_jax.decoding.greedy import GreedyState, greedy_start, greedy_step
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.features.frames import hop_samples, reach_hops
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
    """Return S of `stream_step`: the samples of a chunk, and `reach_hops` on either side."""
    return (chunk_features(config) + sum(reach_hops(config.features))) * hop_samples(
        config.features
    )


def start_samples(config: Config) -> int:
    """Return the samples of the first chunk that stand before the recording."""
    before, _ = reach_hops(config.features)
    return (before + config.encoder.subsampling_lead) * hop_samples(config.features)


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
        samples: S = `chunk_samples`: the chunk, and on either side the `reach_hops` of its frames
            of log-mel. The first chunk begins with `start_samples` samples before the recording,
            which may be anything: the reach, and the features before the first of the recording
            that causal subsampling needs.
        sample_lengths: real samples, including those before the chunk. Fewer than S end the stream.
    """
    number, lead = chunk_features(config), config.encoder.subsampling_lead
    before, _ = reach_hops(config.features)
    seen = state.seen * config.encoder.subsampling_factor
    # Log-mel treats a recording's start in its own way, so that must be the first sample.
    ahead = jnp.maximum(start_samples(config) - seen * hop_samples(config.features), 0)
    samples = jax.vmap(jnp.roll)(samples, -ahead)
    mel, lengths = log_mel(samples, jnp.maximum(sample_lengths - ahead, 0), config.features)
    # The chunk's first feature, in `mel`. Before the recording there are `lead` others.
    first = jnp.where(ahead > 0, seen - lead, before)
    lengths = jnp.where(lengths > 0, jnp.clip(lengths - first, 0, number), 0)
    mel = jnp.pad(mel, ((0, 0), (lead, 0), (0, 0)))
    cut = jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, number))
    return model.encoder.step(state, cut(mel, lead + first), lengths)


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
