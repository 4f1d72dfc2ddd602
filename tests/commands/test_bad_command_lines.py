"""Mistakes on the command line: one line on stderr and exit status 2."""

import os

import pytest


def test_unknown_command_is_rejected_with_the_nearest_one(command):
    outcome = command("trian", "x")
    assert outcome.status == 2
    assert outcome.err == "asr-jax: unknown command 'trian'; did you mean train?\n"


@pytest.mark.parametrize(
    "options, message",
    [
        ("--encoder.layer 3", "unknown option --encoder.layer; did you mean --encoder.layers?"),
        (
            "--optimizer.peak-learnin-rate 1 --encoder.layer 3",
            "unknown option --optimizer.peak-learnin-rate; "
            "did you mean --optimizer.peak-learning-rate?",
        ),
        ("--zebra 3", "unknown option --zebra"),
        ("stray", "unknown option stray"),
        ("--encoder.layers three", "--encoder.layers: 'three' is not an integer"),
        ("--encoder.layers 1.5", "--encoder.layers: '1.5' is not an integer"),
        ("--encoder.dropout little", "--encoder.dropout: 'little' is not a number"),
        ("--encoder.layers", "--encoder.layers: needs a value"),
        (
            "--encoder.subsampling conv3d",
            "--encoder.subsampling: 'conv3d' is not one of 'conv2d', 'conv1d'",
        ),
        ("--encoder.heads 3", "encoder.heads = 3: must divide encoder.width = 16"),
        ("--encoder.width 0", "encoder.width = 0: must be positive"),
        ("--encoder.dropout 0.999", "encoder.dropout = 0.999: must lie in 0..0.99"),
        ("--predictor.dropout -0.1", "predictor.dropout = -0.1: must lie in 0..0.99"),
        ("--predictor.context 0", "predictor.context = 0: must be positive"),
        ("--joint.chunk-frames 0", "joint.chunk_frames = 0: must be positive"),
        ("--objective.ctc-weight -1", "objective.ctc_weight = -1.0: must be finite, >= 0"),
        ("--objective.sigma nan", "objective.sigma = nan: must be finite, >= 0"),
        (
            "--objective.durations 1 2",
            "objective.durations = (1, 2): must begin with 0 and 1, so that any labels fit any "
            "frames, and increase",
        ),
        (
            "--decoding.head ctc --objective.ctc-weight 0",
            "decoding.head = 'ctc': objective.kind = 'transducer' has no CTC head: "
            "objective.ctc_weight is 0",
        ),
        ("--objective.label-smoothing 1", "objective.label_smoothing = 1.0: must lie in 0..1, bel"),
        ("--decoder.heads 3", "decoder.heads = 3: decoder.width / decoder.heads must be an even"),
        ("--decoding.ctc-weight 1", "decoding.ctc_weight = 1.0: must lie in 0..1, below 1"),
        (
            "--decoding.ctc-weight 0.5",
            "decoding.ctc_weight = 0.5: needs objective.kind = 'attention' and a CTC head",
        ),
        ("--encoder.layer-drop 1.5", "encoder.layer_drop = 1.5: must lie in 0..1"),
        (
            "--objective.consistency-weight 0.1 --objective.ctc-weight 0",
            "objective.consistency_weight = 0.1: needs a CTC head: objective.kind = 'ctc', or",
        ),
        (
            "--objective.intermediate-ctc-weight 0.1 --objective.ctc-weight 0.3 --encoder.layers 1",
            "objective.intermediate_ctc_weight = 0.1: needs an encoder with a block before",
        ),
        ("--augment.time-masks -1", "augment.time_masks = -1: must not be negative"),
        ("--features.hop-ms 0.05", "features.hop_ms = 0.05: must be at least a sample at 16000 Hz"),
        ("--optimizer.clip-norm 0", "optimizer.clip_norm = 0.0: must be positive"),
        ("--optimizer.ema-decay 2", "optimizer.ema_decay = 2.0: must lie in 0..1, below 1"),
        ("--optimizer.peak-learning-rate nan", "optimizer.peak_learning_rate = nan: must be posi"),
        ("--mesh.fsdp 0", "mesh.fsdp = 0: must be positive"),
        ("--mesh.data -2", "mesh.data = -2: must be positive, or -1"),
        ("--train.steps 0", "train.steps = 0: must be positive"),
        ("--train.seed -1", "train.seed = -1: must not be negative"),
        ("--train.max-skipped-in-a-row 0", "train.max_skipped_in_a_row = 0: must be positive"),
        ("--checkpoint.every-steps 0", "checkpoint.every_steps = 0: must be positive"),
        ("--checkpoint.keep 0", "checkpoint.keep = 0: must be positive"),
        ("--data.cache-gib inf", "data.cache_gib = inf: must be finite, >= 0"),
        (
            "--decoding.max-symbols-per-frame 0",
            "decoding.max_symbols_per_frame = 0: must be positive",
        ),
        (
            "--train.accumulate 3",
            "train.accumulate = 3: must divide every data.bucket_utterances, also 8",
        ),
        ("--data.bucket-seconds 3 2", "data.bucket_seconds = (3.0, 2.0): must be positive and"),
        (
            "--data.bucket-utterances 12",
            "data.bucket_utterances = 12: must be a multiple of mesh.data x mesh.fsdp x "
            "train.accumulate = 8 x 1 x 1",
        ),
        (
            "--mesh.data 3",
            "mesh.data x mesh.fsdp x mesh.model = 3 x 1 x 1: must be the number of devices, 8",
        ),
    ],
)
def test_invalid_options_of_train_are_rejected(error, trained, tmp_path, options, message):
    error_line = error("train", trained.config, "--run", tmp_path / "run", *options.split())
    assert error_line.startswith(message)
    assert not (tmp_path / "run").exists()


def test_long_value_is_not_wrapped_in_the_message(error, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    value = "/".join(["a long name"] * 10)
    error_line = error("train", trained.config, "--run", tmp_path, "--encoder.layers", value)
    assert error_line == f"--encoder.layers: {value!r} is not an integer"
    assert os.environ["COLUMNS"] == "40"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("train", "CONFIG must come first: a file of configs/, or a run's config.json"),
        ("train --run x", "CONFIG must come first: a file of configs/, or a run's config.json"),
        ("evaluate", "RUN is required"),
        ("evaluate RUN --dat x", "unknown option --dat; did you mean --data?"),
        (
            "evaluate RUN --data x --decoder bean",
            "--decoder: 'bean' is not one of 'run', 'greedy', 'beam'",
        ),
        ("evaluate RUN --data DATA --decoder beam --beam 0", "--beam 0: must be positive"),
        ("evaluate RUN --data DATA --beam 8", "--beam 8: needs --decoder beam"),
        ("evaluate RUN --data nowhere", "nowhere: no such folder or manifest"),
        ("evaluate RUN --data DATA nowhere", "nowhere: no such folder or manifest"),
        ("evaluate RUN --data=", "--data: must not be empty"),
        (
            "evaluate RUN --data DATA --output DATA",
            "--output DATA: must be a folder, it is a file",
        ),
        ("evaluate nowhere", "nowhere: not a run directory, it has no config.json"),
        (
            "evaluate RUN --data DATA --chunk-ms inf",
            "decoding.chunk_ms = inf: must be a multiple of the encoder's frame of 40 ms",
        ),
        (
            "evaluate RUN --data DATA --language-model-weight 0.5",
            "--language-model-weight 0.5: needs --language-model",
        ),
        ("transcribe RUN x --hotword-boost 2", "--hotword-boost 2.0: needs --hotwords"),
        (
            "transcribe RUN x --stream --window-seconds 8",
            "--window-seconds 8.0: --stream has no windows",
        ),
        ("transcribe RUN a/x b/x --format ctm", "--format ctm: 2 recordings are named x"),
        (
            f"transcribe RUN x {'n' * 251}.wav --output new",
            f"--output new: the name of {'n' * 251}.wav is too long",
        ),
        ("transcribe RUN x --output DATA", "--output DATA: must be a folder, it is a file"),
        ("evaluate nowhere --data DATA", "nowhere: not a run directory, it has no config.json"),
        (
            "evaluate RUN --data DATA --checkpoint newest",
            "--checkpoint newest: must be best, last, average:1..3 or one of [2, 3, 4]",
        ),
        (
            "evaluate RUN --data DATA --checkpoint average:9",
            "--checkpoint average:9: must be best, last, average:1..3 or one of [2, 3, 4]",
        ),
        ("transcribe", "RUN is required"),
        ("transcribe RUN", "AUDIO: name at least one recording"),
        ("transcribe RUN --chekpoint x", "unknown option --chekpoint; did you mean --checkpoint?"),
    ],
)
def test_invalid_arguments_of_the_other_commands_are_rejected(error, trained, arguments, message):
    paths = {"RUN": trained.run, "DATA": trained.data}
    error_line = error(*(paths.get(word, word) for word in arguments.split()))
    assert error_line == message.replace("DATA", str(trained.data))


@pytest.mark.parametrize(
    "arguments, twice",
    [
        ("evaluate RUN --data A --data=B", "--data: is given 2 times, --data A and --data=B"),
        ("evaluate RUN --chunk-ms 0 --chunk_ms 160", "--chunk-ms: is given 2 times, --chunk-ms 0"),
        ("evaluate RUN --data A --hotwords B --hotwords B", "--hotwords: is given 2 times"),
        ("transcribe RUN --json A --no-json", "--json: is given 2 times, --json A and --no-json"),
        ("transcribe RUN A --beam 2 --beam=3 --beam 2", "--beam: is given 3 times, --beam 2 and "),
        ("train CONFIG --run A --run B", "--run: is given 2 times, --run A and --run B; give it"),
        (
            "train CONFIG --encoder.layers 2 --encoder.layers=3",
            "--encoder.layers: is given 2 times",
        ),
        (
            "train CONFIG --features.remove-dc --features.no_remove_dc",
            "--features.remove-dc: is given 2 times, --features.remove-dc and --features.no_remove",
        ),
        (
            "train CONFIG --data.more-train A B --data.more_train C",
            "--data.more-train: is given 2 times, --data.more-train A B and --data.more_train C",
        ),
        (
            "fit CONFIG --augment.speeds 1 --augment.speeds 0.9 1",
            "--augment.speeds: is given 2 tim",
        ),
        ("export RUN OUT --format params --format stablehlo", "--format: is given 2 times"),
        ("prepare A OUT --parts x --parts y", "--parts: is given 2 times, --parts x and --parts y"),
    ],
)
def test_a_repeated_option_is_rejected_before_any_work(error, trained, tmp_path, arguments, twice):
    paths = {"RUN": trained.run, "CONFIG": trained.config, "OUT": tmp_path / "out"}
    error_line = error(*(paths.get(word, word) for word in arguments.split()))
    assert error_line.startswith(twice) and error_line.endswith(
        "; give it once, with all its values"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_follows_two_hyphens_is_no_option(trained, command):
    outcome = command("transcribe", trained.run, "--", "--json", "--beam", "--beam")
    assert outcome.err.splitlines() == [
        f"asr-jax transcribe: {name}: no such file" for name in ("--json", "--beam")
    ]
