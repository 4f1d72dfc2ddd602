"""Draw the pictures of docs/losses.md.

    python benchmarks/loss_pictures.py [--output DIR]

lattice.svg and tiles.svg are drawings. posteriors.svg shows a small transducer, which is trained in
a few seconds. memory.svg shows the compiler's account of the step (arguments, outputs and
temporaries of `compiled.memory_analysis()`) on the default backend, which the picture names. The
steps are compiled, not run, so that memory is never allocated.
"""

import argparse
from html import escape
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asr_jax.losses import transducer_alignment, transducer_loss
from asr_jax.losses._tiles import choose_tile

INK, GREY, PALE, BLUE, RED = "#1f2328", "#6e7781", "#d0d7de", "#0b62c4", "#c2410c"
PAPER = "#ffffff"
FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"


class Drawing:
    """An SVG on an opaque light background, so that it is readable on dark pages."""

    def __init__(self, width: int, height: int, title: str):
        self.size, self.title, self.parts = (width, height), title, []
        self.rect(0.5, 0.5, width - 1, height - 1, fill=PAPER, stroke=PALE, rx=6)

    def add(self, tag: str, content: str = "", /, **attributes):
        rounded = lambda v: f"{v:.4g}" if isinstance(v, float) else escape(str(v))
        listed = (f' {k.replace("_", "-")}="{rounded(v)}"' for k, v in attributes.items())
        self.parts.append(f"<{tag}{''.join(listed)}>{content}</{tag}>")

    def rect(self, x, y, width, height, **style):
        self.add("rect", x=x, y=y, width=width, height=height, **style)

    def line(self, *points, stroke=INK, width=1.0, **style):
        listed = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        style = dict(fill="none", stroke=stroke, stroke_width=width) | style
        self.add("polyline", points=listed, **style)

    def arrow(self, start, end, stroke, width, gap=9.0):
        """Draw an arrow between two nodes, leaving a gap at both."""
        a, b = np.array(start, float), np.array(end, float)
        along = (b - a) / np.linalg.norm(b - a)
        across, head = np.array([-along[1], along[0]]), 3.0 + 1.5 * width
        a, b = a + gap * along, b - gap * along
        self.line(a, b - 0.8 * head * along, stroke=stroke, width=width)
        back = b - head * along
        tip = [b, back + 0.5 * head * across, back - 0.5 * head * across]
        self.line(*tip, fill=stroke, stroke="none")

    def circle(self, x, y, r, **style):
        self.add("circle", cx=x, cy=y, r=r, **style)

    def text(self, x, y, words, *, size=12, fill=INK, anchor="start", **style):
        style = dict(font_size=size, fill=fill, text_anchor=anchor) | style
        self.add("text", escape(words), x=x, y=y, **style)

    def save(self, path: Path):
        width, height = self.size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" font-family="{FONT}" role="img">'
        )
        body = "\n".join([f"<title>{escape(self.title)}</title>", *self.parts])
        path.write_text(f"{head}\n{body}\n</svg>\n", encoding="utf-8")
        print(path)


def lattice() -> Drawing:
    """Draw all alignments of 4 labels with 7 frames, one of them marked."""
    labels, frames, alignment = "cats", 7, ".c..a.t.s.."
    drawing = Drawing(640, 370, "The lattice of alignments of 4 labels with 7 frames")
    place = lambda t, u: (98.0 + 72 * t, 274.0 - 58 * u)
    for number in range(frames + len(labels)):  # anti-diagonals, in the background
        ends = [place(t, number - t) for t in range(frames) if 0 <= number - t <= len(labels)]
        over = np.array([10.0, 10.0 * 58 / 72])
        points = ends[0] - over, ends[-1] + over
        drawing.line(*points, stroke=PALE, width=1.4, stroke_dasharray="5 4")
    path, node = {}, (0, 0)
    for symbol in alignment:
        after = (node[0] + (symbol == "."), node[1] + (symbol != "."))
        path[node, after] = RED if symbol != "." else BLUE
        node = after
    for t, u in np.ndindex(frames, len(labels) + 1):
        onward = [(t + 1, u)] * (t + 1 < frames or u == len(labels))
        onward += [(t, u + 1)] * (u < len(labels))
        for after in onward:
            color = path.get(((t, u), after), GREY)
            drawing.arrow(place(t, u), place(*after), color, 0.9 if color == GREY else 3.0)
    on_path = {node for edge in path for node in edge}
    for t, u in np.ndindex(frames, len(labels) + 1):
        style = dict(fill=INK) if (t, u) in on_path else dict(fill=PAPER, stroke=GREY)
        drawing.circle(*place(t, u), 5, **style)
    x, y = place(frames, len(labels))
    drawing.circle(x, y, 5, fill=INK)
    drawing.circle(x, y, 8.5, fill="none", stroke=INK)
    drawing.text(x, y - 15, "end", anchor="middle")
    drawing.text(60, 296, "start", anchor="end")
    for u in range(len(labels) + 1):
        x, y = place(0, u)
        drawing.text(60, y + 4, f"u = {u}", anchor="end", fill=GREY)
        if u:
            drawing.text(78, y + 34, labels[u - 1], size=15, anchor="middle", fill=RED)
    for t in range(frames):
        drawing.text(place(t, 0)[0], 308, f"t = {t}", anchor="middle", fill=GREY)
    for u in range(2):
        x, y = place(frames - 1, u)
        drawing.text(x + 16, y + 15, f"t + u = {frames - 1 + u}", fill=GREY, size=11)
    drawing.arrow((36, 342), (88, 342), BLUE, 3.0, gap=4)
    drawing.text(96, 346, "blank: next frame")
    drawing.arrow((232, 358), (232, 322), RED, 3.0, gap=4)
    drawing.text(244, 346, "label: next label")
    drawing.line((400, 342), (440, 342), stroke=PALE, width=1.8, stroke_dasharray="5 4")
    drawing.text(448, 346, "anti-diagonal: same t + u")
    return drawing


def tiles() -> Drawing:
    """Draw a padded batch and the tiles that are computed."""
    utterances = [(433, 101), (288, 73), (133, 32), (312, 76)]  # frames and labels of LibriSpeech
    frames, cells = (max(x) for x in zip(*((t, u + 1) for t, u in utterances)))
    tile = choose_tile(4, frames, cells, 512, 500, itemsize=4, shards=1, chunk_frames=None)
    drawing = Drawing(720, 268, "A padded batch of four utterances, and the tiles computed")
    across, up, shade, mist, computed = 0.36, 1.5, "#7fb0ea", "#eef1f4", 0
    for b, (t, u) in enumerate(utterances):
        x, y = 22 + b * 174, 40
        drawing.text(x, y - 12, f"T = {t}, U = {u}")
        drawing.rect(x, y, frames * across, cells * up, fill=mist, stroke=PALE)
        rows, columns = -(-t // tile.frames), -(-(u + 1) // tile.cells)
        computed += rows * columns * tile.frames * tile.cells
        width = min(rows * tile.frames, frames) * across
        height = min(columns * tile.cells, cells) * up
        foot, exist = y + cells * up, (u + 1) * up
        drawing.rect(x, foot - height, width, height, fill=shade)
        for left in (x + i * tile.frames * across for i in range(1, rows)):
            drawing.line((left, foot), (left, foot - height), stroke=PAPER)
        for top in (foot - i * tile.cells * up for i in range(1, columns)):
            drawing.line((x, top), (x + width, top), stroke=PAPER)
        outline = dict(fill="none", stroke=INK, stroke_width=1.5)
        drawing.rect(x, foot - exist, t * across, exist, **outline)
    padded, real = len(utterances) * frames * cells, sum(t * (u + 1) for t, u in utterances)
    named = f"tiles of {tile.frames} frames x {tile.cells} cells", "real cells", "padding"
    styles = dict(fill=shade), dict(fill="none", stroke=INK), dict(fill=mist, stroke=PALE)
    for x, name, style in zip((22, 244, 400), named, styles):
        drawing.rect(x, 209, 14, 12, **style)
        drawing.text(x + 22, 219, name)
    text = f"{padded:,} padded cells: {real / padded:.0%} real, {computed / padded:.0%} computed"
    drawing.text(22, 246, text, fill=GREY)
    return drawing


def spoken(rng, symbols, letters, width):
    """Draw frames of letters: each lasts for 3 to 5 frames, and is soft at its end."""
    lengths = rng.integers(3, 6, len(symbols))
    loudness = np.concatenate([[0.6, *[1.0] * (n - 2), 0.1] for n in lengths])
    sound = loudness[:, None] * letters[np.repeat(symbols, lengths)]
    return sound + rng.normal(0, 0.3, (len(sound), width)), lengths


def posteriors() -> Drawing:
    """Draw when a toy transducer, trained on letters, emits those of "hello world"."""
    words, width, hidden, batch, most = "hello world", 12, 48, 16, 11
    alphabet = sorted(set(words))
    rng = np.random.default_rng(0)
    letters = rng.normal(0, 1, (len(alphabet) + 1, width))

    def utterances(rows):
        frames = np.zeros((len(rows), 5 * most, width), np.float32)
        labels, sizes = np.zeros((len(rows), most), np.int32), []
        for row, symbols in enumerate(rows):
            sound, lengths = spoken(rng, symbols, letters, width)
            frames[row, : len(sound)], labels[row, : len(symbols)] = sound, symbols
            sizes.append((len(sound), len(symbols), lengths))
        counts = (jnp.array(x) for x in list(zip(*sizes))[:2])
        return (frames, labels, *counts), sizes

    normal = lambda *shape: jnp.asarray(rng.normal(0, 0.2, shape), jnp.float32)
    vocabulary = len(alphabet) + 1
    params = normal(3 * width, hidden), normal(vocabulary, hidden), normal(hidden, vocabulary)

    def joint(params, frames, labels, *lengths):
        encoder, embedding, kernel = params
        near = [jnp.roll(frames, shift, 1) for shift in (-1, 0, 1)]
        encoded = jnp.concatenate(near, -1) @ encoder
        predicted = embedding[jnp.pad(labels, ((0, 0), (1, 0)))]  # of the previous label
        return encoded, predicted, kernel, None, labels, *lengths

    optimizer = optax.adam(0.01)
    state = optimizer.init(params)

    @jax.jit
    def train(params, state, data):
        mean = lambda params: transducer_loss(*joint(params, *data)).mean()
        loss, gradient = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    for _ in range(300):
        rows = [rng.integers(1, vocabulary, rng.integers(5, most + 1)) for _ in range(batch)]
        params, state, loss = train(params, state, utterances(rows)[0])
    print(f"toy: {float(loss):.2f} nats after 300 steps")

    data, sizes = utterances([np.array([alphabet.index(x) + 1 for x in words])])
    alignment = jax.jit(transducer_alignment)(*joint(params, *data))
    frames, _, lengths = sizes[0]
    shown, best = np.asarray(alignment.posteriors[0]), np.asarray(alignment.best_frames[0])

    drawing = Drawing(720, 324, "Posteriors of the labels over the frames")
    left, bottom, across, up = 58, 232, 620 / frames, 18
    corner = lambda t, u: (left + t * across, bottom - (u + 1) * up)
    for t, u in zip(*np.nonzero(shown > 0.003)):
        drawing.rect(*corner(t, u), across + 0.3, up + 0.3, fill=blue(shown[t, u]))
    name = lambda letter: "␣" if letter == " " else letter
    starts = np.cumsum([0, *lengths])
    for u, letter in enumerate(words):
        x, y = corner(int(best[u]), u)
        drawing.circle(x + across / 2, y + up / 2, 5, fill="none", stroke=RED, stroke_width=2)
        drawing.text(left - 10, y + 13, name(letter), size=14, anchor="end")
        x0, x1 = left + starts[u] * across, left + starts[u + 1] * across
        drawing.rect(x0 + 1, bottom + 6, x1 - x0 - 2, 20, fill="#e4e8ec", rx=3)
        drawing.text((x0 + x1) / 2, bottom + 21, name(letter), size=13, anchor="middle")
    top = bottom - up * len(words)
    drawing.rect(left, top, frames * across, bottom - top, fill="none", stroke=GREY)
    middle = (top + bottom) / 2
    turned = f"rotate(-90 20 {middle})"
    drawing.text(20, middle, "labels", anchor="middle", fill=GREY, transform=turned)
    drawing.text(left, bottom + 43, f"input: {frames} frames", fill=GREY)
    for i in range(60):
        drawing.rect(left + 2 * i, 293, 2.3, 12, fill=blue(i / 59))
    drawing.rect(left, 293, 120, 12, fill="none", stroke=GREY)
    drawing.text(left - 8, 303, "0", anchor="end")
    drawing.text(left + 128, 303, "1")
    drawing.text(left + 150, 303, "probability that the label is emitted")
    drawing.circle(490, 299, 5, fill="none", stroke=RED, stroke_width=2)
    drawing.text(502, 303, "the best alignment")
    return drawing


def blue(probability) -> str:
    mix = lambda a, b: round(a + (b - a) * float(probability) ** 0.7)
    return "#{:02x}{:02x}{:02x}".format(*map(mix, (255, 255, 255), (8, 60, 140)))


# Thirty utterances of LibriSpeech, of at most 437 frames and 101 labels.
SHAPE = dict(B=30, T=437, U=101, V=500, D=512)


def megabytes(implementation, *, B, T, U, V, D) -> tuple[float, float]:
    """Return the peak of loss and gradients, and the size of inputs and gradients alone."""
    float32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    integer = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    floats = float32(B, T, D), float32(B, U + 1, D), float32(D, V), float32(V)
    total = lambda *p: transducer_loss(*p, implementation=implementation).sum()
    step = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3)))
    account = step.lower(*floats, integer(B, U), integer(B), integer(B)).compile().memory_analysis()
    if account is None:
        raise SystemExit("this backend does not report compiled memory")
    given = (account.argument_size_in_bytes + account.output_size_in_bytes) / 1e6
    return given + account.temp_size_in_bytes / 1e6, given


def memory() -> Drawing:
    """Draw the peak memory of the step against V and against T."""
    drawing = Drawing(760, 400, "Peak memory against vocabulary and frames")
    backend = f"{jax.default_backend().upper()}, JAX {jax.__version__}"
    sizes = ", ".join(f"{k} {v}" for k, v in SHAPE.items())
    drawing.text(20, 26, "Peak memory of loss and all gradients", size=14, font_weight="bold")
    drawing.text(20, 44, f"float32, {sizes} unless noted; {backend}", fill=GREY)
    vocabularies = [128, 256, 512, 1024, 2048, 4096, 8192, 16384]
    grow = lambda t: SHAPE | dict(T=t, U=t // 4)
    plain, (tiled, given) = megabytes("reference", **SHAPE)[0], megabytes("xla", **SHAPE)
    print(f"{sizes}: 4-D {plain:.0f}, tiles {tiled:.0f}, inputs and gradients {given:.0f} MB")
    panels = [
        (70, "vocabulary V", [(v, SHAPE | dict(V=v)) for v in vocabularies]),
        (430, "frames T, with U = T / 4 labels", [(t, grow(t)) for t in (50, 100, 200, 400, 800)]),
    ]
    low, high, top, bottom, across = 1.0, 6.0, 70, 340, 300
    y = lambda value: bottom - (np.log10(value) - low) / (high - low) * (bottom - top)
    for left, name, points in panels:
        first, last = np.log2(points[0][0]), np.log2(points[-1][0])
        x = lambda value: left + (np.log2(value) - first) / (last - first) * across
        for power, label in enumerate(["10 MB", "100 MB", "1 GB", "10 GB", "100 GB", "1 TB"], 1):
            drawing.line((left, y(10**power)), (left + across, y(10**power)), stroke=PALE)
            drawing.text(left - 6, y(10**power) + 4, label, size=11, anchor="end", fill=GREY)
        for value, _ in points[:: 2 if len(points) > 6 else 1]:
            drawing.line((x(value), bottom), (x(value), bottom + 4), stroke=GREY)
            drawing.text(x(value), bottom + 17, str(value), size=11, anchor="middle", fill=GREY)
        drawing.text(left + across / 2, bottom + 40, name, size=13, anchor="middle")
        plain = [megabytes("reference", **shape)[0] for _, shape in points]
        tiled, given = zip(*(megabytes("xla", **shape) for _, shape in points))
        for (value, _), *row in zip(points, plain, tiled, given):
            row = "4-D {:.0f}, tiles {:.0f}, inputs and gradients {:.0f} MB".format(*row)
            print(f"{name.partition(',')[0]} {value}: {row}")
        middle = len(points) // 2
        curves = [
            (plain, dict(stroke=RED, width=2.5)),
            (tiled, dict(stroke=BLUE, width=2.5)),
            (given, dict(stroke=GREY, stroke_dasharray="4 3")),
        ]
        for values, style in curves:
            drawing.line(*((x(p[0]), y(v)) for p, v in zip(points, values)), **style)
        left_of_curve = x(points[middle][0]) - 4
        halo = dict(stroke=PAPER, stroke_width=4, stroke_linejoin="round", paint_order="stroke")
        for words, values, color in (("4-D form", plain, RED), ("tiles", tiled, BLUE)):
            height = y(values[middle]) - 9
            drawing.text(left_of_curve, height, words, size=13, fill=color, anchor="end", **halo)
        words, end = "inputs and gradients alone", left + across
        drawing.text(end, y(given[middle]) + 19, words, fill=GREY, anchor="end")
    return drawing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parent.parent / "docs" / "pictures"
    parser.add_argument("--output", type=Path, default=default, metavar="DIR")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for picture in (lattice, tiles, posteriors, memory):
        picture().save(output / f"{picture.__name__}.svg")


if __name__ == "__main__":
    main()
