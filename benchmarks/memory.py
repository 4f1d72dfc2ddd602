"""Draw docs/memory.md's pictures and print docs/benchmarks.md's tables: memory by objective.

    python benchmarks/memory.py RESULTS [TARGET ...]

Compiles the gradients of configs/librispeech_960h_m.py's encoder, and of what stands behind it with
one objective after the other, for TARGETs that need not be there (h100, ...) or for the processor
(cpu). Nothing is run or allocated. RESULTS is a folder for the figures, a JSON
file for each target; what it holds already is not compiled again. Targets need their compilers
(`asr-jax fit` says which packages). Pictures and tables are of what RESULTS holds.
"""

import argparse
import contextlib
import functools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from loss_pictures import BLUE, GREY, PALE, RED, Drawing

from asr_jax.capacity.accelerators import target_devices
from asr_jax.config import Config
from asr_jax.config_file import load_config
from asr_jax.data.buckets import Buckets
from asr_jax.distributed.mesh import batch_sharding, make_mesh
from asr_jax.experiment.batch_shapes import batch_shapes
from asr_jax.layers.length import subsampled
from asr_jax.losses import transducer_loss
from asr_jax.models.composition import split_model
from asr_jax.training import objective, step
from asr_jax.training.optimizer import make_optimizer
from asr_jax.training.state import abstract_state

SHARES = """\
The same as multiples of the encoder's memory, and in GB the sizes of the logits alone (float32): of
CTC [batch, frames, vocabulary], of the decoder [batch, labels + 1, vocabulary], of the joint
[batch, frames, labels + 1, vocabulary]."""
ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/librispeech_960h_m.py"


class Point(NamedTuple):
    utterances: int = 32
    seconds: int = 16
    vocabulary: int = 1024

    @property
    def labels(self) -> int:
        """Five per second, more than 99 % of LibriSpeech's recordings have."""
        return 5 * self.seconds


CENTER = Point()
AXES = {
    "utterances": [Point(utterances=n) for n in (8, 32, 128)],
    "seconds": [Point(seconds=n) for n in (4, 8, 16, 32)],
    "vocabulary": [Point(vocabulary=n) for n in (128, 1024, 4096, 16384)],
}
# The ends of the axes come first.
POINTS = list(
    dict.fromkeys(
        [CENTER, *(points[end] for end in (-1, 0, -2, 1) for points in reversed(AXES.values()))]
    )
)


def encoded_alone(model, features, lengths, labels, label_lengths, *, config, key=None):
    """Replace `utterance_losses`, without any network or loss after the encoder."""
    encoded, _ = model.encoder(features, lengths, key=key)
    return {"loss": jnp.sum(encoded.astype(jnp.float32), axis=(1, 2))}


def _encoder_alone() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(step, "utterance_losses", encoded_alone)


def _in_4d() -> contextlib.AbstractContextManager[Any]:
    plain = functools.partial(transducer_loss, implementation="reference")
    return mock.patch.object(objective, "transducer_loss", plain)


ROW_STYLE: dict[str, Any] = dict(stroke_width=2)


class Row(NamedTuple):
    words: str
    kind: str
    instead: Callable[[], contextlib.AbstractContextManager[Any]]
    """Replaces parts of the training code while the step is traced."""
    style: dict[str, Any]


GREEN, VIOLET = "#1a7f37", "#8250df"
ROWS = {
    "encoder": Row(
        "encoder alone", "ctc", _encoder_alone, dict(stroke=GREY, stroke_dasharray="4 3")
    ),
    "ctc": Row("CTC", "ctc", contextlib.nullcontext, dict(stroke=GREEN)),
    "attention": Row("attention decoder", "attention", contextlib.nullcontext, dict(stroke=VIOLET)),
    "transducer 4-D": Row(
        "transducer, 4-D joint", "transducer", _in_4d, dict(stroke=RED, stroke_width=2.5)
    ),
    "transducer": Row("transducer, tiles", "transducer", contextlib.nullcontext, dict(stroke=BLUE)),
    "tdt": Row(
        "TDT, tiles", "tdt", contextlib.nullcontext, dict(stroke=BLUE, stroke_dasharray="2 3")
    ),
}


def temporaries(
    config: Config, point: Point, name: str, device: Any, *, whole: bool = False
) -> int | None:
    """Return the bytes of temporaries, or None if the compiler ran out of memory.

    name: "encoder" for a step without the part after the encoder; an objective for the part after
        the encoder, given its frames, or with `whole` for the entire step.
    """
    config = replace(
        config,
        objective=replace(config.objective, kind=ROWS[name].kind, ctc_weight=0.0),
        # A CPU computes bfloat16 in float32, and keeps both.
        train=replace(
            config.train, compute_dtype="float32" if device.platform == "cpu" else "bfloat16"
        ),
    )
    mesh = make_mesh(config.mesh, [device])
    optimizer = make_optimizer(config.optimizer, steps=config.train.steps)
    abstract = abstract_state(config, point.vocabulary, optimizer, mesh)
    bucket = Buckets((float(point.seconds),), (point.labels,), (point.utterances,))
    (batch,) = batch_shapes(config, bucket)
    traced = whole_step if whole or name == "encoder" else behind_encoder
    try:
        with ROWS[name].instead(), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            lowered = traced(config, point, abstract.params, batch, abstract.key, mesh)
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def whole_step(config, point, params, batch, key, mesh):
    graphdef, _ = split_model(config, point.vocabulary)
    gradients = functools.partial(step.batch_gradients, graphdef=graphdef, config=config, mesh=mesh)
    placed = jax.jit(gradients, in_shardings=(None, batch_sharding(mesh), None))
    return placed.lower(params, batch, key)


def behind_encoder(config, point, params, batch, key, mesh):
    graphdef, _ = split_model(config, point.vocabulary)
    behind = {part: leaves for part, leaves in params.items() if part != "encoder"}
    dtype = config.train.compute_dtype

    def total(behind, encoded, encoder, *arguments):
        model = nnx.merge(graphdef, step.cast(behind, dtype) | {"encoder": encoder})
        *arguments, key = arguments
        losses = objective.losses_of_encoded(model, encoded, *arguments, config=config, key=key)
        return jnp.sum(losses["loss"])

    frames = subsampled(
        step.bucket_frames(batch.samples.shape[1], config),
        config.encoder.subsampling_factor,
        lead=config.encoder.subsampling_lead,
    )
    shape = point.utterances, frames, config.encoder.width
    arguments = (
        jax.ShapeDtypeStruct(shape, dtype),
        params["encoder"],
        batch.label_lengths,
        batch.labels,
        batch.label_lengths,
    )
    on_device = jax.NamedSharding(mesh, jax.P())
    gradients = jax.jit(jax.grad(total, (0, 1)), in_shardings=on_device)
    return gradients.lower(behind, *arguments, key)


def measure(path: Path, target: str) -> None:
    config = load_config(ROOT / CONFIG)
    device = (jax.devices("cpu") if target == "cpu" else target_devices(target)[0])[0]
    content = {"target": target, "kind": device.device_kind, "jax": jax.__version__}
    content |= {"figures": [], "whole": {}}
    if path.exists():
        content |= json.loads(path.read_text())
    done = [(Point(*figure["point"]), figure["objective"]) for figure in content["figures"]]
    # The encoder does not depend on the vocabulary, and takes longest to compile.
    asked = [(point, name) for point in POINTS for name in ROWS if name != "encoder"]
    asked += [(p, "encoder") for p in POINTS if p.vocabulary == CENTER.vocabulary]
    for point, name in asked:
        if (point, name) in done:
            continue
        began = time.monotonic()
        count = temporaries(config, point, name, device)
        figure = {"point": point, "objective": name, "temporary_bytes": count}
        content["figures"].append(figure)
        path.write_text(json.dumps(content, indent=1) + "\n")
        seconds = time.monotonic() - began
        print(f"{target} {point} {name}: {count} bytes ({seconds:.0f} s)", flush=True)
    for name in ROWS:
        if name not in content["whole"]:
            content["whole"][name] = temporaries(config, CENTER, name, device, whole=True)
            path.write_text(json.dumps(content, indent=1) + "\n")


def draw(content: dict[str, Any]) -> Drawing:
    """Draw the temporaries of every objective along each axis."""
    drawing = Drawing(940, 420, f"Training memory by objective, compiled for {content['kind']}")
    drawing.text(
        20, 26, "Memory of the encoder and of the part after it", size=14, font_weight="bold"
    )
    center = f"{CENTER.utterances} utterances of {CENTER.seconds} s, vocabulary {CENTER.vocabulary}"
    conditions = f"Conformer-M, {center} unless noted; {content['kind'].upper()}, compiled, not run"
    drawing.text(20, 44, conditions, fill=GREY)
    bytes_of = by_point(content)
    values = [value for of_point in bytes_of.values() for value in of_point.values() if value]
    low, high = np.floor(np.log10(min(values))), np.ceil(np.log10(max(values)))
    top, bottom, across = 70, 330, 250
    y = lambda value: bottom - (np.log10(value) - low) / (high - low) * (bottom - top)
    names = {6: "1 MB", 7: "10 MB", 8: "100 MB", 9: "1 GB", 10: "10 GB", 11: "100 GB", 12: "1 TB"}
    for panel, (axis, points) in enumerate(AXES.items()):
        points = [point for point in points if point in bytes_of]
        left = 62 + panel * 300
        first, last = (np.log2(getattr(points[i], axis)) for i in (0, -1))
        x = lambda value, left=left, first=first, last=last: (
            left + (np.log2(value) - first) / max(last - first, 1) * across
        )
        for power in range(int(low), int(high) + 1):
            drawing.line((left, y(10.0**power)), (left + across, y(10.0**power)), stroke=PALE)
            drawing.text(
                left - 5, y(10.0**power) + 4, names[power], size=11, anchor="end", fill=GREY
            )
        for point in points:
            value = getattr(point, axis)
            drawing.line((x(value), bottom), (x(value), bottom + 4), stroke=GREY)
            drawing.text(x(value), bottom + 17, str(value), size=11, anchor="middle", fill=GREY)
        words = "seconds, with 5 labels each" if axis == "seconds" else axis
        drawing.text(left + across / 2, bottom + 38, words, size=13, anchor="middle")
        for name, row in ROWS.items():
            curve = [
                (x(getattr(point, axis)), y(bytes_of[point][name]))
                for point in points
                if bytes_of[point].get(name)
            ]
            drawing.line(*curve, **ROW_STYLE | row.style)
    for number, row in enumerate(ROWS.values()):
        left = 30 + number * 152
        drawing.line((left, 398), (left + 22, 398), **ROW_STYLE | row.style)
        drawing.text(left + 28, 402, row.words, size=11)
    return drawing


def by_point(content: dict[str, Any]) -> dict[Point, dict[str, int | None]]:
    figures: dict[Point, dict[str, int | None]] = {}
    for figure in content["figures"]:
        of_point = figures.setdefault(Point(*figure["point"]), {})
        of_point[figure["objective"]] = figure["temporary_bytes"]
    for point, of_point in figures.items():
        of_encoder = figures.get(point._replace(vocabulary=CENTER.vocabulary), {})
        of_point["encoder"] = of_encoder.get("encoder")
    return {point: of_point for point, of_point in figures.items() if len(of_point) == len(ROWS)}


def gigabytes(count: float | None) -> str:
    return "?" if count is None else f"{count / 1e9:.2f}"


def tables(content: dict[str, Any], config: Config) -> str:
    bytes_of = by_point(content)
    sizes = ["utterances", "seconds", "labels", "vocabulary"]
    heads = [*sizes, *(row.words for row in ROWS.values())]
    lines = [f"| {' | '.join(heads)} |", f"|{' ---: |' * len(heads)}"]
    for point in sorted(bytes_of):
        cells = [point.utterances, point.seconds, point.labels, point.vocabulary]
        cells += [gigabytes(bytes_of[point][name]) for name in ROWS]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    cells = [f"{CENTER.utterances}, all in one", CENTER.seconds, CENTER.labels, CENTER.vocabulary]
    cells += [gigabytes(content["whole"].get(name)) for name in ROWS]
    lines.append(f"| {' | '.join(map(str, cells))} |")
    behind = [name for name in ROWS if name != "encoder"]
    heads = [*sizes, *(ROWS[name].words for name in behind)]
    heads += ["logits of CTC", "attention", "4-D"]
    lines += ["", SHARES, "", f"| {' | '.join(heads)} |", f"|{' ---: |' * len(heads)}"]
    frame_ms = config.encoder.subsampling_factor * config.features.hop_ms
    for point in sorted(bytes_of):
        cells: list[Any] = [point.utterances, point.seconds, point.labels, point.vocabulary]
        encoder = bytes_of[point]["encoder"]
        for name in behind:
            head = bytes_of[point][name]
            cells.append(f"{head / encoder:.2g}" if head and encoder else "?")
        frames, columns = round(1000 * point.seconds / frame_ms), point.labels + 1
        each = 4 * point.utterances * point.vocabulary
        cells += map(gigabytes, (each * frames, each * columns, each * frames * columns))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def report(results: Path) -> None:
    config = load_config(ROOT / CONFIG)
    for path in sorted(results.glob("*.json"), reverse=True):
        content = json.loads(path.read_text())
        if not by_point(content):
            continue
        draw(content).save(ROOT / f"docs/pictures/training_memory_{content['target']}.svg")
        dtype = "float32" if content["target"] == "cpu" else "bfloat16"
        print(f"{content['kind'].upper()}, {dtype}, compiled by JAX {content['jax']}:\n")
        print(tables(content, config))


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("targets", nargs="*")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    for target in options.targets:
        measure(options.results / f"{target}.json", target)
    report(options.results)


if __name__ == "__main__":
    main()
