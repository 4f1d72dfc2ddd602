"""The model card: README.md of an exported directory."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, NotRequired, TypedDict

from asr_jax.config import Config
from asr_jax.export.origin import Origin, license_lines

IMPORTED = "imported"
"""Stands for the checkpoint of an imported model."""


class ExportCheck(NamedTuple):
    """An exported model compared with its run on some recordings."""

    data: str
    recordings: int
    """Number of recordings compared."""
    wer_before: float
    """WER of the run in JAX with float32 parameters, in percent."""
    wer_after: float
    """WER of the exported model, in percent."""
    equal: int
    """Number of transcripts that equal the run's exactly."""
    cer_before: float | None = None
    """CER of the run, in percent, for scripts without spaces between words; else None."""
    cer_after: float | None = None

    @property
    def rates(self) -> tuple[str, float, float]:
        """The name of the rate that counts for the script, the run's, and the exported model's."""
        if self.cer_before is None or self.cer_after is None:
            return "WER", self.wer_before, self.wer_after
        return "CER", self.cer_before, self.cer_after


class Trained(NamedTuple):
    """The parameters of a model."""

    number: int
    checkpoint: str
    """Checkpoint that they come from."""
    origin: Origin | None
    """The publisher's model that they derive from; None for a model trained from nothing."""


class Evaluation(TypedDict):
    """The entries of wer.json that the card shows."""

    metric: NotRequired[Literal["wer", "cer"]]
    """Earlier versions wrote none and counted words."""
    wer: float
    """Percent."""
    wer_95_percent_interval: list[float]
    cer: float
    cer_95_percent_interval: NotRequired[list[float]]
    reference_words: int
    reference_characters: NotRequired[int]
    utterances: int
    facts: Mapping[str, str]


def model_card(
    name: str,
    config: Config,
    *,
    trained: Trained,
    form: str,
    checks: dict[str, ExportCheck],
    evaluations: Sequence[Evaluation],
    use: str,
) -> str:
    """Return the card as Markdown.

    Args:
        form: the format in words.
        checks: a check of each variant, such as float32 and int8.
        evaluations: contents of the run's wer.json files.
        use: how to run the model, as Markdown.
    """
    made = "imported into" if trained.checkpoint == IMPORTED else "trained with"
    trained_on = ", ".join((config.data.train, *config.data.more_train)) or "not stated"
    about = {
        "parameters": f"{trained.number / 1e6:.2f} million",
        **_sizes(config),
        "trained on": trained_on,
        "selected on": config.data.dev or "nothing",
        "checkpoint": _checkpoint(trained.checkpoint, config),
        "format": form,
    }
    (metric,) = {check.rates[0] for check in checks.values()}
    parts = [
        f"# {name}\n\nA speech recognition model {made} asr_jax.\n",
        _table(["", ""], [[key, value] for key, value in about.items()]),
        f"## {'Word' if metric == 'WER' else 'Character'} error rate\n",
        _evaluations(evaluations),
        "## Effect of the export\n",
        _table(
            [
                *("variant", "recordings", f"{metric} % (run)", f"{metric} % (export)"),
                "equal transcripts",
            ],
            [
                [
                    *(variant, f"{check.recordings} of {check.data}"),
                    *(f"{rate:.2f}" for rate in check.rates[1:]),
                    f"{check.equal} of {check.recordings}",
                ]
                for variant, check in checks.items()
            ],
        ),
        f"## Use\n\n{use}",
        "## License\n\n" + _license(trained.origin, trained_on),
    ]
    return "\n".join(parts)


def _predictor(config: Config) -> dict[str, str]:
    """Return the entry of the predictor, if the model has one."""
    predictor = config.predictor
    if config.objective.kind not in ("transducer", "tdt", "hat"):
        return {}
    if predictor.kind == "lstm":
        return {"predictor": f"lstm, {predictor.layers} layers {predictor.width} wide"}
    return {"predictor": f"stateless, {predictor.context} labels, {predictor.width} wide"}


def imported_model_card(
    name: str, config: Config, *, parameters: int, origin: Origin, use: str
) -> str:
    """Return the card of an imported model, which was neither trained nor checked here."""
    about = {
        "parameters": f"{parameters / 1e6:.2f} million ({parameters})",
        **_sizes(config),
        "imported from": origin.source,
    }
    parts = [
        f"# {name}\n\nA speech recognition model imported into asr_jax.\n",
        _table(["", ""], [[key, value] for key, value in about.items()]),
        f"## Use\n\n{use}",
        "## License\n\n" + license_lines(origin),
    ]
    return "\n".join(parts)


def _sizes(config: Config) -> dict[str, str]:
    encoder = config.encoder
    return {
        "encoder": f"{encoder.kind}, {encoder.layers} blocks {encoder.width} wide",
        "objective": config.objective.kind,
        **_predictor(config),
        "audio": f"{config.features.sample_rate_hz} Hz, one channel",
    }


def _checkpoint(checkpoint: str, config: Config) -> str:
    if checkpoint == IMPORTED:
        return checkpoint
    return f"{checkpoint} of {config.train.steps} steps, seed {config.train.seed}"


def _license(origin: Origin | None, trained_on: str) -> str:
    parameters = "- parameters: TO BE FILLED IN by their publisher\n"
    if origin:
        parameters = license_lines(origin)
    return f"{parameters}- training recordings ({trained_on}): TO BE FILLED IN\n"


def _evaluations(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return "The run was not evaluated.\n"
    rows = []
    for evaluation in evaluations:
        facts = evaluation["facts"]
        rate, number = f"{evaluation['wer']:.2f}", f"{evaluation['reference_words']}"
        low, high = evaluation["wer_95_percent_interval"]
        if (
            evaluation.get("metric") == "cer"
            and "cer_95_percent_interval" in evaluation
            and "reference_characters" in evaluation
        ):
            rate = f"{evaluation['cer']:.2f} (CER)"
            number = f"{evaluation['reference_characters']} (characters)"
            low, high = evaluation["cer_95_percent_interval"]
        rows.append(
            [
                *(facts["data"], rate, f"{low:.2f} to {high:.2f}"),
                *(number, str(evaluation["utterances"])),
                *(facts["checkpoint"], facts["decoder"]),
            ]
        )
    return _table(
        ["data", "WER %", "95 % interval", "words", "recordings", "checkpoint", "decoder"], rows
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)
