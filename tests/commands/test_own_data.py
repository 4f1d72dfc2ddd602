"""Training on a folder alone: dev and the kind of tokenizer follow from the recordings."""

import json
import shutil

import pytest

from asr_jax.commands.arguments import override
from asr_jax.config_file import load_config
from asr_jax.experiment.corpus import training_corpus


@pytest.mark.slow
def test_a_part_is_held_out_and_the_tokenizer_is_chosen_once(command, trained, tmp_path):
    run = tmp_path / "run"
    arguments = ("train", trained.config, "--run", run, "--data.train", trained.data)
    arguments += ("--data.held-out-fraction=0.3", "--tokenizer.kind=auto")
    outcome = command(*arguments)
    assert outcome.status == 0, outcome.err
    [line] = [line for line in outcome.err.splitlines() if line.startswith("held out")]
    assert line == "held out to measure the WER, as data.dev is empty: 2 recordings, 0.0 minutes"
    assert f"{run}: 4 utterances" in outcome.err
    assert f"{run / 'tokenizer.model'}: " in outcome.err and " labels (char)" in outcome.err
    assert "left out: none of 6 utterances" in outcome.err.splitlines()
    assert "an epoch is 1 batch, and train.steps = 4 is about 4 epochs" in outcome.err
    assert "optimizer.warmup_steps = 1000: the learning rate rises in all of the 4 steps" in (
        outcome.err
    )
    # Without data.test, the report is on the held-out part.
    report = run / "evaluation/held-out/report.html"
    assert f"WER on the held-out part of {trained.data}: " in outcome.out
    assert outcome.out.endswith(f"in 2 recordings; {report}\n") and report.exists()
    assert "step 4: WER on dev" in outcome.err
    assert load_config(run / "config.json").tokenizer.kind == "char"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum("dev_wer" in line for line in metrics) == 2
    # The same command resumes, and so does the run's config.json.
    for again in (arguments, ("train", run / "config.json")):
        shutil.rmtree(run / "checkpoints/4")
        outcome = command(*again)
        assert outcome.status == 0 and "resuming from step" in outcome.err, outcome.err
        assert line in outcome.err and "warning" not in outcome.err
        assert str(report) in outcome.out


def test_a_second_dataset_has_its_own_option(command, trained):
    start = ("train", trained.config, "--run", "unused", "--data.train")
    for rest in (("a=", "b=c"), ("a=", "--data.train=b=c")):
        outcome = command(*start, *rest)
        assert outcome.status == 2
        assert outcome.err == (
            "asr-jax train: --data.train: takes one dataset, a=; add the others with "
            "--data.more-train b=c\n"
        )


def test_data_dev_is_used_if_there_is_one(trained, tmp_path):
    options = [f"--data.train={trained.data}", "--data.held-out-fraction=0.3"]
    config = override(load_config(trained.config), options)
    corpus, _ = training_corpus(config, tmp_path)
    assert (len(corpus.utterances), len(corpus.held_out), list(corpus.sizes)) == (4, 2, [4])
    config = override(config, [f"--data.dev={trained.data}"])
    corpus, _ = training_corpus(config, tmp_path)
    assert (len(corpus.utterances), len(corpus.held_out), list(corpus.sizes)) == (6, 0, [6])
