"""Speed and accuracy of the searches with a trained model.

    python benchmarks/decoding.py RUN [--data DATA] [--beams 2 4 8] [--frames-per-turn 4]
                                  [--rows N] [--repeats N]

Every batch of DATA (default: the run's data.dev) is encoded. Encoder and searches are compiled and
timed separately; the best of --repeats times counts. Searches are greedy search with each number of
frames per turn, beams, and the CTC head if there is one. Each has a line with

    seconds, RTFx (seconds of audio per second) of encoder and search, WER
    log P: the mean of log P(labels) in nats; the number of recordings for which it is below greedy
        search's; the same number for the search's own score, a sum over the alignments it kept
    drift: differences in ms between the starts of correct words in the hypothesis and in the most
        probable alignment of the reference; their mean and 95th percentile
    AUC: how often a correct word has a higher confidence than a wrong word

It runs in one process on one device.
"""

import argparse
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asr_jax.config import DecodingConfig
from asr_jax.data.manifest import read_transcribed
from asr_jax.data.pipeline import evaluation_batches
from asr_jax.decoding.alignment import align_labels
from asr_jax.decoding.greedy import greedy_search
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.decoding.search import search
from asr_jax.features.logmel import log_mel
from asr_jax.inference.decode_batch import (
    encoded_frame_seconds,
    recognition_buckets,
    transcripts,
)
from asr_jax.inference.recognizer import open_run
from asr_jax.losses import tdt_loss, transducer_loss
from asr_jax.models.transducer import Transducer
from asr_jax.scoring.wer import align, word_error_rate
from asr_jax.types import Word


def main() -> None:
    parser = argparse.ArgumentParser(
        usage=str(__doc__), formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--beams", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--frames-per-turn", type=int, nargs="*", default=[4])
    parser.add_argument("--rows", type=int, help="utterances per batch")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    run = open_run(options.run, "best")
    config = run.config
    utterances, _ = read_transcribed(options.data or config.data.dev, "--data")
    buckets = recognition_buckets(utterances, config, run.tokenizer.vocabulary_size, devices=1)
    if options.rows:
        buckets = buckets._replace(utterances=(options.rows,) * len(buckets.utterances))
    labels = run.tokenizer.encode_all([u.text for u in utterances])
    batches = evaluation_batches(
        utterances,
        labels,
        buckets=buckets._replace(labels=(max(map(len, labels)),) * len(buckets.labels)),
        data=config.data,
        sample_rate_hz=config.features.sample_rate_hz,
    )
    batches = jax.device_put(list(batches))
    seconds_of_audio = sum(u.duration_seconds for u in utterances)
    device = jax.devices()[0].device_kind
    print(
        f"{len(utterances)} recordings, {seconds_of_audio:.1f} s, {len(batches)} batches, {device}"
    )

    def timed(function, inputs):
        """Return the results, and the best time for all inputs."""
        compiled = jax.jit(
            lambda params, *inputs: function(nnx.merge(run.graphdef, params), *inputs)
        )
        results = jax.block_until_ready([compiled(run.params, *x) for x in inputs])
        times = []
        for _ in range(options.repeats):
            began = time.monotonic()
            jax.block_until_ready([compiled(run.params, *x) for x in inputs])
            times.append(time.monotonic() - began)
        return results, min(times)

    def encode(model, batch):
        features, lengths = log_mel(batch.samples, batch.sample_lengths, config.features)
        return model.encoder(features, lengths)

    def read(hypotheses: Sequence[Hypotheses]):
        """Return the best transcript of every utterance."""
        transcript_of = {}
        for batch, of_batch in zip(batches, jax.device_get(hypotheses)):
            for row, utterance in enumerate(batch.utterances):
                of_row = Hypotheses(*(field[row] for field in of_batch))
                transcript_of[int(utterance)] = transcripts(
                    of_row, run.tokenizer, frame_seconds=encoded_frame_seconds(config)
                )[0]
        return [transcript_of[n] for n in range(len(utterances))]

    encoded, encoder_seconds = timed(encode, [(batch,) for batch in batches])
    rtfx = seconds_of_audio / encoder_seconds
    print(f"features and encoder: {encoder_seconds:.3f} s, RTFx {rtfx:.0f}")
    references = [(*e, b.labels, b.label_lengths) for b, e in zip(batches, encoded)]
    aligned = read(timed(alignment, references)[0])

    bound = config.decoding.max_symbols_per_frame
    searches = {
        f"greedy, {n} frames per turn": functools.partial(
            greedy_search, max_symbols_per_frame=bound, frames_per_turn=n
        )
        for n in options.frames_per_turn
    } | {
        f"beam {n}": functools.partial(
            search, config=DecodingConfig(beam=n, max_symbols_per_frame=bound)
        )
        for n in options.beams
    }
    if config.objective.has_ctc_head:
        searches["CTC head"] = functools.partial(search, config=DecodingConfig(head="ctc"))
    print("| search | s | RTFx | WER % | log P | below | score | drift, ms | p95 | AUC |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    of_greedy = None
    real = np.concatenate([batch.utterances for batch in batches]) >= 0
    for name, search_with in searches.items():
        hypotheses, seconds = timed(search_with, encoded)
        labeled = []
        for e, h in zip(encoded, hypotheses):
            labels = h.labels[:, 0, : int(h.counts.max()) + 1]
            labeled.append((*e, labels, h.counts[:, 0]))
        likelihoods = np.concatenate(timed(log_likelihood, labeled)[0])[real]
        scores = np.concatenate([h.scores[:, 0] for h in hypotheses])[real]
        values = likelihoods, scores
        of_greedy = values if of_greedy is None else of_greedy
        below = [np.sum(ours < greedy - 1e-3) for ours, greedy in zip(values, of_greedy)]
        below = below if name != "CTC head" else [below[0], ""]  # its scores are of another model
        recognized = read(hypotheses)
        wer = word_error_rate([u.text for u in utterances], [t.text for t in recognized])
        pairs = [(a.words, r.words) for a, r in zip(aligned, recognized)]
        drifts = np.concatenate([drift_ms(*pair) for pair in pairs])
        print(
            f"| {name} | {seconds:.3f} | {seconds_of_audio / (seconds + encoder_seconds):.0f} "
            f"| {100 * wer:.1f} | {likelihoods.mean():.2f} | {below[0]} | {below[1]} "
            f"| {drifts.mean():.0f} | {np.quantile(drifts, 0.95):.0f} "
            f"| {area_under_curve(pairs):.3f} |",
            flush=True,
        )


def joint_arguments(model: Transducer, frames, lengths, labels, counts):
    joint = model.joint
    arguments = (
        joint.encoder_projection(frames),
        joint.predictor_projection(model.predictor(labels)),
        joint.out.kernel[...],
        None if joint.out.bias is None else joint.out.bias[...],
        *(labels, lengths, counts),
    )
    options: dict[str, Any] = {"activation": joint.activation}
    if joint.durations:
        options["durations"] = joint.durations
    else:
        options["factorization"] = joint.factorization
    return arguments, options


def log_likelihood(model: Transducer, *inputs):
    arguments, options = joint_arguments(model, *inputs)
    return -(tdt_loss if "durations" in options else transducer_loss)(*arguments, **options)


def alignment(model: Transducer, frames, lengths, labels, counts) -> Hypotheses:
    """Return the labels at the frames of the most probable alignment."""
    best = align_labels(model, frames, lengths, labels, counts)
    nothing = jnp.zeros(labels.shape)
    fields = (labels, counts, best.best_frames, nothing, best.best_log_probability)
    return Hypotheses(*(field[:, None] for field in fields))


def correct_words(
    reference: Sequence[Word], hypothesis: Sequence[Word]
) -> Iterator[tuple[Word, Word]]:
    """Yield (reference, hypothesis) of the correct words."""
    expected, recognized = iter(reference), iter(hypothesis)
    for column in align([word.text for word in reference], [word.text for word in hypothesis]):
        if column.op == "equal":
            yield next(expected), next(recognized)
            continue
        for word, words in ((column.reference, expected), (column.hypothesis, recognized)):
            if word is not None:
                next(words)


def drift_ms(reference: Sequence[Word], hypothesis: Sequence[Word]) -> np.ndarray:
    pairs = correct_words(reference, hypothesis)
    return np.array([1000 * abs(a.start_seconds - b.start_seconds) for a, b in pairs])


def area_under_curve(pairs) -> float:
    """Return the fraction of (correct, wrong) pairs where the correct word is surer; ties half."""
    correct = [word.confidence for pair in pairs for _, word in correct_words(*pair)]
    wrong = [word.confidence for _, hypothesis in pairs for word in hypothesis]
    for confidence in correct:
        wrong.remove(confidence)
    correct, wrong = np.array(correct)[:, None], np.array(wrong)
    return float(np.mean((correct > wrong) + 0.5 * (correct == wrong)))


if __name__ == "__main__":
    main()
