"""What searching takes with a trained model, and what it finds:

    python benchmarks/decoding.py RUN [--data DATA] [--beams 2 4 8] [--rows N] [--repeats N]

Every batch of DATA (default: the run's data.dev) is encoded; then encoder and searches are timed by
themselves, compiled, the best of --repeats times each. A line has the seconds, RTFx (seconds of
audio per second) of the search alone and of encoder and search, the WER, the mean of log P(labels),
in nats, and of how many recordings that is below greedy's. One process, one device.
"""

import argparse
import dataclasses
import functools
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from asr_jax.commands.recognition import open_run
from asr_jax.config import DecodingConfig
from asr_jax.data.manifest import read_transcribed
from asr_jax.data.pipeline import evaluation_batches
from asr_jax.decoding.search import search
from asr_jax.features.logmel import log_mel
from asr_jax.losses import transducer_loss
from asr_jax.scoring.wer import word_error_rate


def main() -> None:
    parser = argparse.ArgumentParser(
        usage=str(__doc__), formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--beams", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--rows", type=int, help="utterances in a batch")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    run = open_run(options.run, "best")
    config = run.config
    if options.rows:
        rows = (options.rows,) * len(config.data.bucket_utterances)
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, bucket_utterances=rows)
        )
    utterances, _ = read_transcribed(options.data or config.data.dev, "--data")
    batches = evaluation_batches(
        utterances,
        [np.zeros(0, np.int32)] * len(utterances),
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
        """Results, and the best time for all inputs."""
        compiled = jax.jit(function)
        results = jax.block_until_ready([compiled(run.params, *x) for x in inputs])
        times = []
        for _ in range(options.repeats):
            began = time.monotonic()
            jax.block_until_ready([compiled(run.params, *x) for x in inputs])
            times.append(time.monotonic() - began)
        return results, min(times)

    def encode(params, batch):
        features, lengths = log_mel(batch.samples, batch.sample_lengths, config.features)
        return nnx.merge(run.graphdef, params).encoder(features, lengths)

    encoded, encoder_seconds = timed(encode, [(batch,) for batch in batches])
    rtfx = seconds_of_audio / encoder_seconds
    print(f"features and encoder: {encoder_seconds:.3f} s, RTFx {rtfx:.0f}")

    def likelihood(params, frames, lengths, labels, counts):
        model = nnx.merge(run.graphdef, params)
        joint = model.joint
        return -transducer_loss(
            joint.encoder_projection(frames),
            joint.predictor_projection(model.predictor(labels)),
            joint.out.kernel[...],
            joint.out.bias[...],
            labels,
            lengths,
            counts,
            factorization=joint.factorization,
            activation=joint.activation,
        )

    print("| search | s | RTFx of the search | RTFx | WER % | log P | log P below greedy's |")
    print("|---|---|---|---|---|---|---|")
    most = config.decoding.max_symbols_per_frame
    searches = {
        f"beam {n}" if n else "greedy": functools.partial(
            search, config=DecodingConfig(beam=n, max_symbols_per_frame=most)
        )
        for n in (0, *options.beams)
    }
    of_greedy = None
    for name, search_with in searches.items():
        found, seconds = timed(
            lambda params, *x: search_with(nnx.merge(run.graphdef, params), *x), encoded
        )
        texts, scores = [""] * len(utterances), np.zeros(len(utterances))
        for batch, (labels, counts), (frames, lengths) in zip(batches, found, encoded):
            labels = labels[:, : int(counts.max()) + 1]
            row_scores = jax.jit(likelihood)(run.params, frames, lengths, labels, counts)
            for row, utterance in enumerate(np.asarray(batch.utterances)):
                if utterance >= 0:
                    texts[utterance] = run.tokenizer.decode(labels[row, : counts[row]].tolist())
                    scores[utterance] = row_scores[row]
        of_greedy = scores if of_greedy is None else of_greedy
        below = int(np.sum(scores < of_greedy - 1e-3))
        wer = 100 * word_error_rate([u.text for u in utterances], texts)
        both = seconds_of_audio / (seconds + encoder_seconds)
        print(
            f"| {name} | {seconds:.3f} | {seconds_of_audio / seconds:.0f} | {both:.0f} "
            f"| {wer:.1f} | {scores.mean():.2f} | {below} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
