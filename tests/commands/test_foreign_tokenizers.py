"""Runs with a SentencePiece model that another program trained."""

import io
import json
import types

import sentencepiece
from tiny import write_manifest

from asr_jax.commands.export import check
from asr_jax.experiment import dev_wer
from asr_jax.inference.recognizer import open_run
from asr_jax.text import Tokenizer
from asr_jax.types import Transcript


def test_a_model_that_folds_case_is_trained_on_and_scored_with_folded_text(
    trained, command, tmp_path, monkeypatch
):
    """The model has <unk> as id 0 and as many labels as the shared run, whose step is compiled."""
    labels = Tokenizer.load(trained.run / "tokenizer.model").vocabulary_size
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: labels - 3]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([letters, f"{letters[:2]} {letters[2:]}"]),
        model_writer=model,
        model_type="char",
        vocab_size=labels + 1,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc_cf",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path / "foreign.model"
    path.write_bytes(model.getvalue())
    audio = [str(trained.data.parent / f"{n}.flac") for n in range(4)]
    transcripts = dict(zip(audio, ["ABC", "Cab BA", "abc", "AB\u00c9!"]))
    data = write_manifest(tmp_path / "data.jsonl", transcripts)
    run = tmp_path / "run"
    options = [f"--data.{part}={data}" for part in ("train", "dev", "test")]
    heard = lambda text: [Transcript(text.lower(), (), 0.0)]
    monkeypatch.setattr(
        dev_wer, "transcribe_batches", lambda *_, **__: [heard(t) for t in transcripts.values()]
    )
    outcome = command(
        *("train", trained.config, "--run", run, "--tokenizer.model", path),
        *options,
    )
    assert outcome.status == 0, outcome.err
    assert "step 4: WER on dev 0.0 %" in outcome.err
    tokenizer = Tokenizer.load(run / "tokenizer.model")
    assert tokenizer.pieces[:2] == ["<blk>", "<unk>"]
    assert tokenizer.vocabulary_size == labels
    folds = "folds text (nmt_nfkc_cf); transcripts are trained on, and references scored, in"
    assert outcome.err.count(f"{run / 'tokenizer.model'}: {folds} this form") == 1
    (skipped,) = map(json.loads, (run / "skipped.jsonl").read_text().splitlines())
    assert skipped["reason"] == "characters that the tokenizer lacks: !\u00e9"
    lacking = "references with characters that the model cannot write"
    assert outcome.err.count(f"data.dev: {lacking}: 1 of 4: '!' (1), '\u00e9' (1)") == 1
    assert outcome.err.count(f"{data}: {lacking}: 1 of 4: ") == 1

    (folder,) = (run / "evaluation").iterdir()
    figures = json.loads((folder / "wer.json").read_text())
    assert figures["facts"]["references folded by the tokenizer"] == "nmt_nfkc_cf"
    assert figures["facts"][lacking] == "1 of 4: '!' (1), '\u00e9' (1)"
    lines = (folder / "hypotheses.jsonl").read_text().splitlines()
    references = [json.loads(line)["reference"] for line in lines]
    assert references == list(transcripts.values())

    # A recognizer that writes the folded references makes no error.
    entries = [json.loads(line) for line in lines]
    perfect = [e | {"hypothesis": tokenizer.normalize(e["reference"])} for e in entries]
    (tmp_path / "perfect").mkdir()
    baseline = tmp_path / "perfect" / "hypotheses.jsonl"
    baseline.write_text("".join(json.dumps(entry) + "\n" for entry in perfect))
    out = ("--output", tmp_path / "out", "--compare", baseline.parent)
    assert command("evaluate", run, *out).status == 0
    figures = json.loads((tmp_path / "out" / "wer.json").read_text())
    assert figures["comparison"]["other_wer"] == 0

    def recognize(_, utterances):
        texts = [tokenizer.normalize(utterance.text) for utterance in utterances]
        return types.SimpleNamespace(texts=texts)

    monkeypatch.setattr(check, "recognize_utterances", recognize)
    reference = check.recognize_reference(open_run(run, "best"), str(data), 9)
    assert reference.compare(reference.texts).wer_before == 0
