"""Draw docs/pictures/architecture.svg and write the import rules of docs/architecture.md.

    python docs/pictures/architecture.py

Rooms are the parts that MAY_IMPORT in tests/test_import_rules.py names. A room's floor is the
longest chain of permitted imports below it. An arrow is a permitted import that no chain of other
arrows implies (the transitive reduction); it is dashed where no import statement uses it. Only
places and phrases are chosen by hand. tests/test_architecture.py compares both files with what this
script writes.
"""

import sys
from collections.abc import Mapping, Sequence, Set
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from test_import_rules import (  # noqa: E402
    LIBRARIES,
    MAY_IMPORT,
    MODULES,
    OPENS_FILES,
    READS_CALL,
    READS_CLOCK,
    imports,
    part_of,
)

PICTURE = Path(__file__).with_suffix(".svg")
PAGE = ROOT / "docs" / "architecture.md"
RULES = ("<!-- rules: written by docs/pictures/architecture.py -->", "<!-- end of the rules -->")
INK, GREY, PALE, MIST, PAPER = "#1f2328", "#59636e", "#d0d7de", "#f6f8fa", "#ffffff"
ARROW, DATA = "#8b98a8", "#c2410c"
FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, 'DejaVu Sans Mono', monospace"

WIDTH, LEFT, COLUMN = 1240, 172, 138
BOX_WIDTH, BOX_HEIGHT = 120, 50
GAPS = {0: 104, 1: 88}  # below floor 1 and below floor 2; GAP elsewhere
GAP = 46

Point = tuple[float, float]
Graph = Mapping[str, Set[str]]


class Room(NamedTuple):
    column: float
    """Place from left to right, in columns."""
    holds: str


ROOMS = {
    "__main__": Room(3.2, "entry point"),
    "commands": Room(3.2, "argv in, calls out"),
    "experiment": Room(3.2, "a run, its rules"),
    "__init__": Room(1.6, "asr_jax.load"),
    "inference": Room(2.5, "a model in use"),
    "export": Room(1.2, "other runtimes"),
    "pretrained": Room(0.1, "foreign models"),
    "capacity": Room(4.5, "does it fit?"),
    "decoding": Room(1.2, "searches"),
    "training": Room(4.05, "step and loop"),
    "data": Room(0, "files to batches"),
    "features": Room(1.35, "log-mel, masks"),
    "models": Room(2.7, "networks"),
    "distributed": Room(4.75, "mesh, processes"),
    "config_file": Room(5.72, "config.json"),
    "scoring": Room(6.7, "WER, report"),
    "survey": Room(5.72, "what is in data"),
    "pages": Room(7.6, "parts of pages"),
    "audio": Room(0, "samples"),
    "text": Room(0.95, "SentencePiece"),
    "text_files": Room(1.9, "lines of UTF-8"),
    "layers": Room(2.85, "blocks"),
    "losses": Room(3.8, "stand alone"),
    "types": Room(4.75, "Batch, Transcript"),
    "config": Room(5.72, "every setting"),
    "errors": Room(6.7, "in one line"),
}


def permitted() -> Graph:
    """Return the other rooms that each room may import."""
    return {
        room: {part_of(name) for name in names.split()} - {room}
        for room, names in MAY_IMPORT.items()
    }


def imported() -> Graph:
    """Return the other rooms that each room's import statements name."""
    rooms: dict[str, set[str]] = {room: set() for room in MAY_IMPORT}
    for module, tree in MODULES.items():
        own = (name.partition(".")[2] for name in imports(tree) if name.startswith("asr_jax."))
        rooms[part_of(module)] |= {part_of(name) for name in own} - {part_of(module)}
    return rooms


def floors(graph: Graph) -> dict[str, int]:
    """Return the longest chain of imports below each room."""

    def floor(room: str) -> int:
        return 1 + max(map(floor, graph[room]), default=-1)

    return {room: floor(room) for room in graph}


def reduced(graph: Graph) -> list[tuple[str, str]]:
    """Return the edges that no longer path implies, sorted."""

    def reaches(start: str, end: str) -> bool:
        return any(below == end or reaches(below, end) for below in graph[start])

    return sorted(
        (room, below)
        for room, rooms in graph.items()
        for below in rooms
        if not any(reaches(between, below) for between in rooms - {below})
    )


class Drawing:
    """An SVG sheet, element by element."""

    def __init__(self, width: float, height: float):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"'
            f' width="{width:g}" height="{height:g}" font-family="{FONT}" role="img">',
            "<title>The rooms of asr_jax, who may import whom, and the data's path</title>",
        ]
        self.rect(0.5, 0.5, width - 1, height - 1, fill=PAPER, stroke=PALE, rx=8)

    def add(self, tag: str, content: str = "", /, **attributes: object) -> None:
        listed = ""
        for name, value in attributes.items():
            shown = f"{value:.5g}" if isinstance(value, float) else escape(str(value))
            listed += f' {name.replace("_", "-")}="{shown}"'
        self.parts.append(f"<{tag}{listed}>{content}</{tag}>")

    def rect(self, x: float, y: float, width: float, height: float, **style: object) -> None:
        self.add("rect", x=x, y=y, width=width, height=height, **style)

    def text(self, x: float, y: float, words: str, **style: object) -> None:
        self.add("text", escape(words), x=x, y=y, **({"fill": INK, "font_size": 12} | style))

    def curve(self, points: list[Point], **style: object) -> None:
        """Draw a smooth line down through the points, vertical at each."""
        path = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
        for (x0, y0), (x1, y1) in zip(points, points[1:]):
            bend = (y0 + y1) / 2
            path += f" C{x0:.1f},{bend:.1f} {x1:.1f},{bend:.1f} {x1:.1f},{y1:.1f}"
        self.add("path", d=path, fill="none", **style)

    def polyline(self, points: list[Point], radius: float, **style: object) -> None:
        """Draw straight lines with rounded corners."""
        path = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
        for before, corner, after in zip(points, points[1:], points[2:]):
            a, b = _toward(corner, before, radius), _toward(corner, after, radius)
            path += (
                f" L{a[0]:.1f},{a[1]:.1f} Q{corner[0]:.1f},{corner[1]:.1f} {b[0]:.1f},{b[1]:.1f}"
            )
        path += f" L{points[-1][0]:.1f},{points[-1][1]:.1f}"
        self.add("path", d=path, fill="none", **style)

    def word(self, middle: Point, words: str) -> None:
        """Write on the data's path, with a halo over lines behind."""
        style = {"font_weight": "bold", "font_size": 12.5, "text_anchor": "middle", "fill": DATA}
        halo = {"stroke": PAPER, "stroke_width": 4, "stroke_linejoin": "round"}
        self.text(*middle, words, paint_order="stroke", **style, **halo)

    def head(self, tip: Point, way: tuple[int, int], color: str, *, size: float = 1.0) -> None:
        """Draw an arrow head."""
        (x, y), (dx, dy) = tip, way
        back, half = 8 * size, 3.8 * size
        ends = [(x - back * dx + half * dy, y - back * dy + half * dx)]
        ends += [(x - back * dx - half * dy, y - back * dy - half * dx)]
        path = " ".join(f"L{a:.1f},{b:.1f}" for a, b in ends)
        self.add("path", d=f"M{x:.1f},{y:.1f} {path} Z", fill=color)


def _toward(start: Point, end: Point, distance: float) -> Point:
    dx, dy = end[0] - start[0], end[1] - start[1]
    part = min(0.5, distance / max(1e-9, (dx * dx + dy * dy) ** 0.5))
    return start[0] + part * dx, start[1] + part * dy


class House(NamedTuple):
    """Positions of the rooms in the picture."""

    floors: dict[str, int]
    tops: list[float]
    """Upper edge of the boxes of each floor."""
    height: float

    def middle(self, room: str) -> float:
        return LEFT + COLUMN * ROOMS[room].column

    def top(self, room: str) -> float:
        return self.tops[self.floors[room]]

    @property
    def down_to_losses(self) -> float:
        return self.middle("losses") - 24

    @property
    def up_to_training(self) -> float:
        return self.middle("training") + 10

    @property
    def run_directory(self) -> Point:
        return self.middle("config_file"), self.side("training", 1)[1]

    def side(self, room: str, direction: int) -> Point:
        """Return the middle of the right (1) or left (-1) wall."""
        return self.middle(room) + direction * BOX_WIDTH / 2, self.top(room) + BOX_HEIGHT / 2

    def free(self, floor: int, x: float, lines: Sequence[float]) -> float:
        """Return the place nearest to x that is clear of the floor's rooms and of these lines."""
        blocks = [(self.middle(r), BOX_WIDTH / 2 + 11) for r in ROOMS if self.floors[r] == floor]
        blocks += [(line, 11.0) for line in lines]
        places = [x, *(b - reach for b, reach in blocks), *(b + reach for b, reach in blocks)]
        clear = (p for p in places if all(abs(p - b) > reach - 0.01 for b, reach in blocks))
        return min(clear, key=lambda p: (abs(p - x), p))


def build(numbers: dict[str, int]) -> House:
    tops, y = [0.0] * (max(numbers.values()) + 1), 74.0
    for floor in range(len(tops) - 1, -1, -1):
        tops[floor] = y
        y += BOX_HEIGHT + GAPS.get(floor - 1, GAP)
    return House(numbers, tops, tops[0] + BOX_HEIGHT + 34)


def ports(edges: list[tuple[str, str]], house: House) -> dict[tuple[str, str], tuple[float, float]]:
    """Return where each edge leaves its upper room and enters its lower one, side by side."""
    places: dict[tuple[str, str], list[float]] = {edge: [0.0, 0.0] for edge in edges}
    for end in (0, 1):
        for room in {edge[end] for edge in edges}:
            own = [edge for edge in edges if edge[end] == room]
            own.sort(key=lambda edge: (house.middle(edge[1 - end]), edge))
            spread = min(20.0, (BOX_WIDTH - 30) / max(1, len(own) - 1))
            for number, edge in enumerate(own):
                shift = (number - (len(own) - 1) / 2) * spread
                places[edge][end] = house.middle(room) + shift
    return {edge: (start, end) for edge, (start, end) in places.items()}


def draw_imports(drawing: Drawing, house: House) -> None:
    used, edges = imported(), reduced(permitted())
    crossings: dict[int, list[float]] = {floor: [] for floor in range(len(house.tops))}
    # The data's path, and its words.
    crossings[1] += [house.up_to_training, *(house.down_to_losses + x for x in (0, 20, 40, 58))]
    crossings[2] += [house.run_directory[0] + x for x in (-40, -20, 0, 20, 40)]
    for (room, below), (start, end) in sorted(ports(edges, house).items(), key=lambda e: e[1]):
        y0, y1 = house.top(room) + BOX_HEIGHT, house.top(below)
        points = [(start, y0)]
        for floor in range(house.floors[room] - 1, house.floors[below], -1):
            along = (house.tops[floor] + BOX_HEIGHT / 2 - y0) / (y1 - y0)
            x = house.free(floor, start + along * (end - start), crossings[floor])
            crossings[floor].append(x)
            points += [(x, house.tops[floor] - 4), (x, house.tops[floor] + BOX_HEIGHT + 4)]
        style = {} if below in used[room] else {"stroke_dasharray": "5 4"}
        drawing.curve([*points, (end, y1 - 6)], stroke=ARROW, stroke_width=1.4, **style)
        drawing.head((end, y1 - 0.5), (0, 1), ARROW)


class Leg(NamedTuple):
    """A stretch of the data's path, drawn with an arrow at its end."""

    points: list[Point]
    handed_on: str = ""
    label: Point = (0.0, 0.0)


def data_path(house: House, files: Point, report: Point) -> list[Leg]:
    """Return the path from files to the report, and what each room hands on."""
    middle, side, run = house.middle, house.side, house.run_directory
    floor, wall = side("data", 1)[1], side("inference", 1)
    arrives, leaves = wall[1] + 11, wall[1] - 11
    scoring, training = middle("scoring") + 26, house.top("training") + BOX_HEIGHT
    batch, features, encoded, saved = (
        side(room, 1)[0] + shift
        for room, shift in [("data", 33), ("features", 33), ("models", 33), ("training", 70)]
    )
    return [
        Leg([files, side("data", -1)]),
        Leg([side("data", 1), side("features", -1)], "Batch", (batch, floor - 9)),
        Leg([side("features", 1), side("models", -1)], "features", (features, floor - 9)),
        Leg(
            _along_then_to(side("models", 1), (house.down_to_losses, house.top("losses"))),
            *("encoded", (encoded, floor - 9)),
        ),
        Leg(
            _along_then_to(side("losses", 1), (house.up_to_training, training)),
            *("loss", (house.up_to_training + 22, training + 40)),
        ),
        Leg([side("training", 1), (run[0] - 28, run[1])], "TrainState", (saved, run[1] - 9)),
        Leg(
            [(run[0], run[1] - 22), (run[0], arrives), (wall[0], arrives)],
            *("parameters", (run[0] - 80, arrives + 18)),
        ),
        Leg(
            _along_then_to((wall[0], leaves), (scoring, house.top("scoring"))),
            *("Transcript", (scoring - 86, leaves - 9)),
        ),
        Leg([side("scoring", 1), (report[0] - 18, report[1])]),
    ]


def _along_then_to(start: Point, end: Point) -> list[Point]:
    """Go along the floor first, then up or down."""
    return [start, (end[0], start[1]), end]


def draw_data(drawing: Drawing, house: House) -> None:
    files, report = (38.0, house.side("data", -1)[1]), (WIDTH - 42.0, house.side("scoring", 1)[1])
    path = data_path(house, files, report)
    for points, _, _ in path:
        (x0, y0), (x1, y1) = points[-2:]
        way = ((x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0))
        stop = (x1 - 9 * way[0], y1 - 9 * way[1])
        drawing.polyline([*points[:-1], stop], 14, stroke=DATA, stroke_width=4)
        drawing.head((x1, y1), way, DATA, size=1.5)
    for middle, name, outline in [
        (files, "files", "m-15,-20 h20 l10,10 v30 h-30 Z m20,0 v10 h10 m-24,10 h18 m-18,6 h18"),
        (report, "report", "m-15,-20 h20 l10,10 v30 h-30 Z m20,0 v10 h10 m-24,10 h18 m-18,6 h18"),
        (house.run_directory, "run directory", "m-24,-18 h17 l5,7 h26 v29 h-48 Z m0,13 h48"),
    ]:
        style = {"fill": PAPER, "stroke": DATA, "stroke_width": 1.8, "stroke_linejoin": "round"}
        drawing.add("path", d=f"M{middle[0]:.1f},{middle[1]:.1f} {outline}", **style)
        drawing.word((middle[0], middle[1] + 37), name)
    for _, handed_on, label in path:
        drawing.word(label, handed_on)


def draw_rooms(drawing: Drawing, house: House) -> None:
    for room, (_, holds) in ROOMS.items():
        x, y = house.middle(room), house.top(room)
        drawing.rect(x - BOX_WIDTH / 2, y, BOX_WIDTH, BOX_HEIGHT, fill=PAPER, stroke=GREY, rx=7)
        centred = {"text_anchor": "middle"}
        drawing.text(x, y + 22, room, font_size=15, font_weight="bold", font_family=MONO, **centred)
        drawing.text(x, y + 40, holds, font_size=12, fill=GREY, **centred)


def draw_legend(drawing: Drawing) -> None:
    drawing.text(36, 52, "asr_jax", font_size=22, font_weight="bold", font_family=MONO)
    dashed = {"stroke_dasharray": "5 4"}
    for number, (words, color, width, style) in enumerate(
        [
            ("may import (arrows that others imply are left out)", ARROW, 1.4, {}),
            ("may import, but no import statement does", ARROW, 1.4, dashed),
            ("path of the data", DATA, 4.0, {}),
        ]
    ):
        y = 80.0 + 24 * number
        drawing.polyline([(37, y), (70, y)], 0, stroke=color, stroke_width=width, **style)
        drawing.head((78, y), (1, 0), color, size=1.5 if color == DATA else 1.0)
        drawing.text(90, y + 4, words, font_size=13)


def draw() -> str:
    """Return the SVG text."""
    house = build(floors(permitted()))
    drawing = Drawing(WIDTH, house.height)
    for floor, top in enumerate(house.tops):
        if floor % 2 == 0:
            drawing.rect(1, top - 14, WIDTH - 2, BOX_HEIGHT + 28, fill=MIST)
    draw_legend(drawing)
    draw_imports(drawing, house)
    draw_data(drawing, house)
    draw_rooms(drawing, house)
    return "\n".join([*drawing.parts, "</svg>"]) + "\n"


def rules() -> str:
    """Return the import rules as a table and three lists, in Markdown."""

    def listed(names: str, *, apart_from: str = "") -> str:
        listed_names = [f"`{name}`" for name in names.split() if name != apart_from]
        return ", ".join(listed_names) or "nothing"

    lines = ["| part | may import of this package | libraries |", "|---|---|---|"]
    for room, names in MAY_IMPORT.items():
        own = listed(names, apart_from=room)
        libraries = listed(LIBRARIES[room]) if room in LIBRARIES else "any"
        lines.append(f"| `{room}` | {own} | {libraries} |")
    lines += [
        "",
        f"- Command line and environment: {listed(READS_CALL)}.",
        f"- Clock: {listed(READS_CLOCK)}.",
        f"- Files: {listed(OPENS_FILES)}.",
    ]
    return "\n".join(lines)


def with_rules(page: str) -> str:
    """Return the page with the rules in their place."""
    begin, end = RULES
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n\n{rules()}\n\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    PAGE.write_text(with_rules(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PICTURE, PAGE, sep="\n")
