"""The whole that the lessons take apart, drawn once; each lesson lights its part.

python -m utils.whole          # writes notebooks/figures and the alt text of each

A lesson shows the picture once, with the Markdown that `image("NN")` returns; an
experiment with `image("NN", "../figures")`. The command prints these lines. The alt
texts stand in the table `PARTS`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import nbformat

from utils.colours import CARD, INK, LIT, LIT_GROUND, LIT_INK, PANEL, UNLIT
from utils.course import ROOT
from utils.files import write_text

NOTEBOOKS = ROOT / "notebooks"
IMAGE = re.compile(r"!\[[^]]*\]\((?P<folder>[./]*figures)/whole_(?P<part>\d\d)\.svg\)")

GUTTER = 104  # pixels, for the names of the parts
COLUMNS = 862
MARGIN, PAD, GAP = 14, 12, 26
BOX = 50
WIDTH = 2 * MARGIN + GUTTER + COLUMNS + 2 * PAD
LEFT = MARGIN + GUTTER + PAD
BLOCK = "N ×"  # in place of a second line: the box that holds two


@dataclass(frozen=True)
class Part:
    """One lesson's part of the whole.

    Attributes:
        number: of the lesson.
        name: as it stands in the picture.
        boxes: title and second line of each.
        alt: what is lit, for readers who do not see it.
    """

    number: str
    name: str
    boxes: tuple[tuple[str, str], ...]
    alt: str


PARTS = (
    Part(
        "02",
        "Prompt",
        (("Prompt", "in its template"), ("One token", "greedy or sampled")),
        "the prompt goes in at the left; one token is chosen at the right, appended to "
        "the text, and the model is asked again",
    ),
    Part(
        "01",
        "Model",
        (
            ("Token ids", "pieces of text"),
            ("Embeddings", "a vector each"),
            ("Attention\nFeed-forward", BLOCK),
            ("Final norm", "scales vectors"),
            ("Output matrix", "a score per token"),
            ("Probabilities", "of the next token"),
        ),
        "token ids become embeddings, pass N times through attention and feed-forward, "
        "then the final norm and the output matrix, and come out as probabilities of "
        "the next token",
    ),
    Part(
        "03",
        "Data",
        (
            ("File", "CSV, JSON, Excel, …"),
            ("Rows", "question and answer"),
            ("Template", "one text a row"),
            ("Ids and labels", "the prompt is masked"),
            ("Batch", "rows, padded"),
        ),
        "a file becomes rows, each row a text by the template, then ids and labels; "
        "several rows become a padded batch",
    ),
    Part(
        "04",
        "Training step",
        (
            ("Base + LoRA", "the base is frozen"),
            ("Loss", "on the answer's tokens"),
            ("Gradients", "of LoRA alone"),
            ("Optimizer", "changes LoRA"),
            ("Adapter", "after all steps"),
        ),
        "a batch goes through the frozen base with LoRA; the loss on the answer's "
        "tokens gives gradients, the optimizer changes LoRA, step after step, and an "
        "adapter is left",
    ),
    Part(
        "05",
        "Judging",
        (
            ("Questions", "held out"),
            ("Systems", "base, notes, tuned"),
            ("Judge", "right or wrong"),
            ("Interval", "how sure it is"),
            ("Decision", "tune or not"),
            ("Endpoint", "lesson 06"),
        ),
        "questions go to several systems, a judge marks the answers, an interval says "
        "how sure the result is, and a decision follows, before anything is served",
    ),
)


def draw(number: str) -> str:
    """Return the whole as SVG: its own pale card, so that any theme can carry it.

    Args:
        number: of the lesson whose part is lit, such as "03".

    Raises:
        ValueError: when no part belongs to this lesson.
    """
    lit = _find(number)
    tops, top = {}, MARGIN
    for part in PARTS:
        tops[part.number] = top
        top += _height(part) + GAP
    height = top - GAP + MARGIN
    pieces = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'role="img" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'text-anchor="middle">',
        f"<title>The whole; lit: {escape(lit.name)}</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="{CARD}"/>',
    ]
    for part in PARTS:
        pieces += _panel(part, tops[part.number], part is lit)
    return "".join([*pieces, *_links(tops)]) + "</svg>"


def image(number: str, folder: str = "figures") -> str:
    """Return the Markdown that shows the whole in a notebook, with its alt text.

    Args:
        number: of the lesson whose part is lit.
        folder: of the figures, as seen from the notebook.

    Raises:
        ValueError: when no part belongs to this lesson.
    """
    part = _find(number)
    return (
        "![The whole: prompt, model, data, training step, judging. Lit is "
        f'"{part.name.lower()}": {part.alt}.]({folder}/whole_{number}.svg)'
    )


def main() -> None:
    """Write the figures, and the alt text into the notebooks that show them."""
    for part in sorted(PARTS, key=lambda part: part.number):
        figure = NOTEBOOKS / "figures" / f"whole_{part.number}.svg"
        write_text(figure, draw(part.number) + "\n")
        print(image(part.number))
    for path in sorted(NOTEBOOKS.rglob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        before = nbformat.writes(notebook)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = IMAGE.sub(
                    lambda found: image(found["part"], found["folder"]), cell.source
                )
        if nbformat.writes(notebook) != before:
            write_text(path, nbformat.writes(notebook).rstrip("\n") + "\n")


def _find(number: str) -> Part:
    """Return the part of this lesson."""
    for part in PARTS:
        if part.number == number:
            return part
    numbers = ", ".join(sorted(part.number for part in PARTS))
    raise ValueError(
        f"The whole has no part {number!r}: give one of the lessons {numbers}."
    )


def _has_block(part: Part) -> bool:
    return any(below == BLOCK for _, below in part.boxes)


def _height(part: Part) -> int:
    """Return how high the panel of a part is."""
    inside = 100 if _has_block(part) else BOX
    return inside + 2 * PAD + (18 if part.number == "04" else 0)


def _columns(part: Part) -> list[tuple[float, float]]:
    """Return the left edge and the width of each box."""
    count = 6 if len(part.boxes) == 2 else len(part.boxes)
    width = (COLUMNS - (count - 1) * GAP) / count
    places = [(LEFT + n * (width + GAP), width) for n in range(count)]
    return [places[0], places[-1]] if len(part.boxes) == 2 else places


def _middle(part: Part, top: float) -> float:
    """Return the height at which the boxes of a panel have their middle."""
    return top + PAD + (50 if _has_block(part) else BOX / 2)


def _panel(part: Part, top: float, is_lit: bool) -> list[str]:
    """Return the ground, the name and the boxes of a part, with arrows between."""
    edge, ground, wide = (LIT, LIT_GROUND, 2) if is_lit else (PANEL, CARD, 1)
    height, middle = _height(part), _middle(part, top)
    words = part.name.split()
    pieces = [
        f'<rect x="{MARGIN}" y="{top}" width="{WIDTH - 2 * MARGIN}" height="{height}" '
        f'rx="8" fill="{ground}" stroke="{edge}" stroke-width="{wide}"/>',
        *(
            _text(MARGIN + GUTTER / 2 + 2, y, word, 15, INK, bold=True)
            for y, word in zip(
                _lines_around(top + height / 2, 1 + len(words), 19),
                [part.number, *words],
                strict=True,
            )
        ),
    ]
    places = _columns(part)
    for (left, width), (title, below) in zip(places, part.boxes, strict=True):
        if below == BLOCK:
            pieces += _block(left, width, middle, title, is_lit)
        else:
            pieces.append(_box(left, middle - BOX / 2, width, BOX, is_lit))
            pieces += _written(left + width / 2, middle, (title, below), is_lit)
    if len(places) > 2:
        for (left, width), (following, _) in zip(places, places[1:], strict=False):
            start = left + width + 3
            pieces.append(_arrow([(start, middle), (following - 3, middle)]))
    return pieces


def _block(
    left: float, width: float, middle: float, titles: str, is_lit: bool
) -> list[str]:
    """Return the frame that is passed N times, with what is in it."""
    pieces = [
        f'<rect x="{left}" y="{middle - 50}" width="{width}" height="100" rx="8" '
        f'fill="none" stroke="{LIT}" stroke-dasharray="5 3"/>',
        _text(left + width / 2, middle - 33, BLOCK, 14, INK, bold=True),
    ]
    for title, top in zip(titles.split("\n"), (middle - 25, middle + 11), strict=True):
        pieces.append(_box(left + 6, top, width - 12, 32, is_lit))
        ink = LIT_INK if is_lit else INK
        pieces.append(_text(left + width / 2, top + 21, title, 14, ink, bold=True))
    return pieces


def _links(tops: dict[str, float]) -> list[str]:
    """Return the arrows that lead from one part to another, or back."""
    places = {part.number: _columns(part) for part in PARTS}
    middles = {part.number: _middle(part, tops[part.number]) for part in PARTS}

    def center(part: str, box: int) -> float:
        left, width = places[part][box]
        return left + width / 2

    def above(part: str) -> float:
        return middles[part] - BOX / 2 - 3

    def below(part: str) -> float:
        return middles[part] + BOX / 2 + 3

    def between(part: str) -> float:
        return tops[part] - GAP / 2

    first, last = places["02"]
    again = middles["02"]
    middle = (first[0] + first[1] + last[0]) / 2
    loop = below("04") + 14
    return [
        _arrow([(last[0] - 3, again), (first[0] + first[1] + 3, again)]),
        _text(middle, again - 9, "append it to the text, and ask again", 13, INK),
        _arrow([(center("02", 0), below("02")), (center("01", 0), above("01"))]),
        _arrow([(center("01", -1), above("01")), (center("02", 1), below("02"))]),
        _arrow(
            [
                (center("03", -1), below("03")),
                (center("03", -1), between("04")),
                (center("04", 0), between("04")),
                (center("04", 0), above("04")),
            ]
        ),
        _arrow(
            [
                (center("04", 3), below("04")),
                (center("04", 3), loop),
                (center("04", 0), loop),
                (center("04", 0), below("04")),
            ]
        ),
        _arrow(
            [
                (center("04", -1), below("04")),
                (center("04", -1), between("05")),
                (center("05", 1), between("05")),
                (center("05", 1), above("05")),
            ]
        ),
    ]


def _box(left: float, top: float, width: float, height: float, is_lit: bool) -> str:
    return (
        f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="7" '
        f'fill="{LIT if is_lit else UNLIT}" stroke="{LIT}"/>'
    )


def _written(
    center: float, middle: float, lines: tuple[str, str], is_lit: bool
) -> list[str]:
    """Return a box's title and its second line."""
    ink = LIT_INK if is_lit else INK
    return [
        _text(center, middle - 4, lines[0], 14, ink, bold=True),
        _text(center, middle + 14, lines[1], 12, ink),
    ]


def _text(
    x: float, y: float, text: str, size: int, ink: str, *, bold: bool = False
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}"{weight} fill="{ink}">'
        f"{escape(text)}</text>"
    )


def _lines_around(middle: float, count: int, apart: float) -> list[float]:
    """Return where lines of text stand, so that they are centred."""
    return [middle + 5 + apart * (n - (count - 1) / 2) for n in range(count)]


def _arrow(points: Sequence[tuple[float, float]]) -> str:
    """Return a line through the points, with a head at the last one."""
    (before_x, before_y), (x, y) = points[-2:]
    right, down = (x > before_x) - (x < before_x), (y > before_y) - (y < before_y)
    side, along = (down, right), (right, down)
    wings = [
        (x - 7 * along[0] + 5 * sign * side[0], y - 7 * along[1] + 5 * sign * side[1])
        for sign in (1, -1)
    ]
    line = "L".join(f"{px:g} {py:g}" for px, py in points)
    head = "L".join(f"{px:g} {py:g}" for px, py in (wings[0], (x, y), wings[1]))
    return f'<path d="M{line}M{head}" fill="none" stroke="{INK}" stroke-width="2"/>'


if __name__ == "__main__":
    main()
