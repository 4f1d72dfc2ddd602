"""Transcripts as people write them: capitals, punctuation and any script, through the commands."""

import json

from tiny import write_manifest

from asr_jax.text import Tokenizer


def test_a_run_keeps_its_normalization_wherever_its_tokenizer_is_used(trained, command, tmp_path):
    """In lower case the texts have the characters of the shared run, whose step is compiled."""
    lines = map(json.loads, trained.data.read_text().splitlines())
    spoken = {str(trained.data.parent / x["audio_filepath"]): x["text"] for x in lines}
    written = {audio: "".join(map(capital, text)) for audio, text in spoken.items()}
    assert "NAÏVE FIVE" in written.values() and "GRÖßER" in written.values()
    data = write_manifest(tmp_path / "data.jsonl", written)
    where = [f"--data.{part}={data}" for part in ("train", "dev", "test")]
    options = ("--tokenizer.kind", "auto", "--tokenizer.normalization", "lowercase")
    run = tmp_path / "run"
    outcome = command("train", trained.config, "--run", run, *options, *where)
    assert outcome.status == 0, outcome.err
    assert f"{run / 'tokenizer.model'}: folds text (lowercase)" in outcome.err
    kept = json.loads((run / "config.json").read_text())
    assert (kept["tokenizer.kind"], kept["tokenizer.normalization"]) == ("char", "lowercase")
    tokenizer = Tokenizer.load(run / "tokenizer.model")
    assert [*map(tokenizer.normalize, written.values())] == [*spoken.values()]
    # The labels, and so the loss, are those of the transcripts in lower case.
    losses = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        for folder in (run, trained.run)
    ]
    assert losses[0] == losses[1]
    (evaluation,) = (run / "evaluation").iterdir()
    facts = json.loads((evaluation / "wer.json").read_text())["facts"]
    assert facts["references folded by the tokenizer"] == "lowercase"
    assert "references with characters that the model cannot write" not in facts

    other = command("train", trained.config, "--run", run, *options[:3], "nfkc", *where)
    assert other.status and "tokenizer.normalization is 'lowercase', not 'nfkc'" in other.err

    given = ("--tokenizer.model", run / "tokenizer.model", where[0])
    tuned = ("train", trained.config, "--run", tmp_path / "tuned", *given)
    other = command(*tuned, "--tokenizer.normalization", "nfkc")
    assert other.status and other.err.rstrip().endswith(
        "tokenizer.normalization = 'nfkc': must be none, or 'lowercase', which is that of "
        f"tokenizer.model = {run / 'tokenizer.model'}"
    )
    for _ in ("starts", "resumes"):
        outcome = command(*tuned)
        assert outcome.status == 0, outcome.err
        kept = json.loads((tmp_path / "tuned" / "config.json").read_text())
        assert kept["tokenizer.normalization"] == "lowercase"


def capital(character: str) -> str:
    """Return a capital letter if it has the given one as its lower case."""
    upper = character.upper()
    return upper if upper.lower() == character and len(upper) == 1 else character
