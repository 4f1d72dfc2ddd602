"""The WER on data.dev while training goes on."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from asr_jax.config import Config
from asr_jax.data.manifest import read_transcribed
from asr_jax.data.pipeline import evaluation_batches
from asr_jax.distributed.mesh import local_rows
from asr_jax.experiment.skipped import print_left_out
from asr_jax.inference.decode_batch import hypotheses, make_recognizer
from asr_jax.scoring.wer import word_error_rate
from asr_jax.text import Tokenizer


def dev_evaluation(config: Config, tokenizer: Tokenizer, mesh: Any) -> Any:
    """(graphdef, averaged parameters, note) -> dev_wer in percent; None without a data.dev."""
    if not config.data.dev:
        return None
    utterances, unreadable = read_transcribed(config.data.dev, "data.dev")
    print_left_out("data.dev", unreadable)
    no_labels = [np.zeros(0, np.int32)] * len(utterances)
    recognizer_of = functools.cache(lambda graphdef: make_recognizer(graphdef, config, mesh))
    noted: set[str] = set()

    def evaluate_dev(graphdef: Any, averaged: Any, note: Callable[[str], None]) -> dict[str, float]:
        recognize = recognizer_of(graphdef)
        batches = evaluation_batches(
            utterances,
            no_labels,
            data=config.data,
            sample_rate_hz=config.features.sample_rate_hz,
            multiple=mesh.shape["data"] * mesh.shape["fsdp"],
            local_rows=functools.partial(local_rows, mesh),
        )
        found = hypotheses(
            recognize, averaged, batches, tokenizer, config=config, utterances=len(utterances)
        )
        for skipped in batches.failed:
            if skipped.id not in noted:
                note(f"data.dev: left out: {skipped.id}, {skipped.reason}")
                noted.add(skipped.id)
        scored = [(u.text, best[0].text) for u, best in zip(utterances, found) if best]
        if not scored:
            raise ValueError(f"data.dev = {config.data.dev}: none of its recordings can be read")
        return {"dev_wer": 100 * word_error_rate(*zip(*scored))}

    return evaluate_dev
