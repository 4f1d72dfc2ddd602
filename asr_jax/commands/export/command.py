"""`asr-jax export RUN OUT --format ...`: write a self-contained model and check it."""

import importlib.util
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from asr_jax.commands.arguments import parse, require_new_folder
from asr_jax.commands.export.check import recognize_reference
from asr_jax.config import MeshConfig
from asr_jax.distributed.compile_notices import logged_compile_notices
from asr_jax.distributed.devices import prepare_devices
from asr_jax.distributed.sharding import state_shardings
from asr_jax.errors import UsageError, name_full_disk
from asr_jax.export.model_card import Evaluation, Trained, model_card
from asr_jax.inference.recognizer import Recognizer, open_run, with_decoding
from asr_jax.models.composition import split_model
from asr_jax.models.encoder import fold_shared_layers
from asr_jax.text_files import escaped


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a model and compare its transcripts of some recordings with the run's."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write; must be new or empty."""
    format: Literal["params", "stablehlo", "sherpa-onnx", "transformers", "nemo"]
    """params: for asr_jax itself.
    stablehlo: programs that need only JAX.
    sherpa-onnx: ONNX files for sherpa-onnx (docs/export.md).
    transformers, nemo: for these libraries, if they can express the model (docs/pretrained.md)."""
    checkpoint: str = "best"
    """best (on dev), last, a step, or average:N (mean of the newest N)."""
    quantize: Literal["none", "int8"] = "none"
    """int8: matrices in eight bits, with a scale per channel.
    --format sherpa-onnx writes them in addition to float32."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the parameters that are not quantized; only for --format params."""
    fold: bool = False
    """Store full matrices for every encoder layer instead of shared ones.
    Faster, but as large as a model without sharing."""
    chunk_ms: float | None = None
    """Override decoding.chunk_ms: export for streaming in chunks of this size."""
    data: str = ""
    """Recordings with transcripts for the check; default: the run's data.test, or else data.dev."""
    recordings: int = 16
    """Number of recordings to check, evenly spread over the dataset."""


@logged_compile_notices()
def run(arguments: list[str]) -> int:
    options = parse(Options, arguments, program="asr-jax export")
    _check(options)
    # The packages of the other formats may be missing.
    if options.format == "params":
        require_packages("safetensors")
        from asr_jax.commands.export import write_params as form
    elif options.format == "stablehlo":
        require_packages("flatbuffers", extra="export")
        from asr_jax.commands.export import write_stablehlo as form
    elif options.format == "transformers":
        require_packages("safetensors")
        from asr_jax.commands.export import write_transformers as form
    elif options.format == "nemo":
        from asr_jax.commands.export import write_nemo as form
    else:
        require_packages("onnx", "onnxruntime", extra="export")
        from asr_jax.commands.export import write_sherpa_onnx as form
    prepare_devices(MeshConfig())
    int8 = options.quantize == "int8"
    recognizer = open_run(options.run, options.checkpoint)
    recognizer = with_decoding(recognizer, chunk_ms=options.chunk_ms)
    recognizer = form.prepared(recognizer, dtype=options.dtype, int8=int8)
    exported = folded(recognizer) if options.fold else recognizer
    reference = recognize_reference(recognizer, options.data, options.recordings)
    with name_full_disk(options.out):
        partial = options.out.with_name(options.out.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        checks = form.write(partial, exported, reference, dtype=options.dtype, int8=int8)
        card = model_card(
            options.run.resolve().name,
            exported.config,
            trained=Trained(
                sum(leaf.size for leaf in jax.tree.leaves(exported.params)),
                exported.checkpoint,
                exported.origin,
            ),
            form=", ".join([form.FORM, " and ".join(checks)] + ["folded"] * options.fold),
            checks=checks,
            evaluations=read_evaluations(options.run),
            use=form.usage(options.out.name, exported.config),
        )
        (partial / "README.md").write_text(escaped(card), encoding="utf-8")
        os.replace(partial, options.out)
    for variant, check in checks.items():
        metric, before, after = check.rates
        print(
            f"{options.out}: {variant}: {check.equal} of {check.recordings} transcripts are the "
            f"run's; {metric} {after:.2f} %, the run's {before:.2f} %"
        )
    return 0


def _check(options: Options) -> None:
    if options.recordings < 1:
        raise UsageError(f"--recordings {options.recordings}: must be positive")
    require_new_folder(options.out)


def folded(recognizer: Recognizer) -> Recognizer:
    """Return the model with a matrix W + A B + D for each layer.

    Raises UsageError for a model without shared matrices.
    """
    if recognizer.config.encoder.shared_layers == 1:
        raise UsageError("--fold: encoder.shared_layers is 1, so no matrices are shared")
    config, params = fold_shared_layers(recognizer.config, recognizer.params)
    graphdef, _ = split_model(config, recognizer.tokenizer.vocabulary_size)
    params = jax.device_put(params, state_shardings(params, recognizer.mesh))
    return recognizer._replace(config=config, graphdef=graphdef, params=params)


def require_packages(*names: str, extra: str = "") -> None:
    """Raise UsageError if a package is not installed, saying how to install it."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            what = f"'asr_jax[{extra}]'" if extra else name
            raise UsageError(f"--format needs the package {name}: pip install {what}")


def read_evaluations(run: Path) -> list[Evaluation]:
    """Read the run's evaluations; report and skip those that cannot be read."""
    evaluations = []
    for path in sorted(run.glob("evaluation/*/wer.json")):
        try:
            evaluation = json.loads(path.read_bytes())
            if evaluation["wer"] is not None:
                evaluations.append(evaluation)
        except (ValueError, KeyError, TypeError) as error:
            print(f"{path}: not in the model card: {error}", file=sys.stderr)
    return evaluations
