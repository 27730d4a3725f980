"""utils.whole: one part is lit, its text fits, figures and alt texts are up to date."""

from __future__ import annotations

from itertools import combinations
from xml.etree import ElementTree

import nbformat
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from utils.colours import LIT, UNLIT
from utils.whole import GUTTER, IMAGE, LEFT, NOTEBOOKS, PARTS, draw, image

each_part = pytest.mark.parametrize("part", PARTS, ids=lambda part: part.number)


def drawn(number: str, kind: str) -> list[ElementTree.Element]:
    """The elements of a kind, such as "text"."""
    tree = ElementTree.fromstring(draw(number))
    return [one for one in tree.iter() if one.tag.endswith(f"}}{kind}")]


def boxes(number: str) -> list[tuple[float, float, float, float, str]]:
    """Left, top, right, bottom and fill of the boxes with text."""
    found = []
    for box in drawn(number, "rect"):
        if box.attrib.get("fill") in (LIT, UNLIT):
            x, y, width, height = (
                float(box.attrib[name]) for name in ("x", "y", "width", "height")
            )
            found.append((x, y, x + width, y + height, box.attrib["fill"]))
    return found


@each_part
def test_one_part_is_lit(part) -> None:
    lit = sum(fill == LIT for *_, fill in boxes(part.number))
    assert lit == len(part.boxes) + any("\n" in title for title, _ in part.boxes)
    others = [text for other in PARTS for title, text in other.boxes]
    shown = ["".join(text.itertext()) for text in drawn(part.number, "text")]
    assert set(others) <= set(shown), "a part is missing"


def test_boxes_do_not_overlap() -> None:
    for one, other in combinations(boxes("01"), 2):
        apart = one[2] <= other[0] or other[2] <= one[0]
        assert apart or one[3] <= other[1] or other[3] <= one[1], (one, other)


def test_texts_fit_into_their_boxes_also_in_a_wide_font() -> None:
    for text in drawn("01", "text"):
        weight = text.attrib.get("font-weight", "normal")
        font = FontProperties(family="DejaVu Sans", weight=weight)
        size = int(text.attrib["font-size"])
        half = TextPath((0, 0), text.text, size, prop=font).get_extents().width / 2
        x, y = float(text.attrib["x"]), float(text.attrib["y"])
        around = [
            box for box in boxes("01") if box[0] < x < box[2] and box[1] < y < box[3]
        ]
        left, right = (around[0][0], around[0][2]) if around else (0, x + half)
        if not around and x < LEFT:
            left, right = LEFT - GUTTER, LEFT
        assert left + 2 <= x - half and x + half <= right, text.text


@each_part
def test_figures_and_alt_texts_are_what_the_command_writes(part) -> None:
    figure = NOTEBOOKS / "figures" / f"whole_{part.number}.svg"
    remedy = "run `python -m utils.whole`"
    assert figure.read_text(encoding="utf-8").strip() == draw(part.number), remedy
    for path in NOTEBOOKS.rglob("[0-9][0-9]_*.ipynb"):
        for cell in nbformat.read(path, nbformat.NO_CONVERT).cells:
            for found in IMAGE.finditer(cell.source):
                wanted = image(found["part"], found["folder"])
                assert found[0] == wanted, f"{path.name}: {remedy}"


def test_an_experiment_finds_the_figure_in_the_folder_above() -> None:
    shown = image("01", "../figures")
    assert shown.endswith("(../figures/whole_01.svg)")
    assert IMAGE.fullmatch(shown)


def test_an_unknown_part_is_refused() -> None:
    for use in (draw, image):
        with pytest.raises(ValueError, match="no part '06': give one .* 01, 02"):
            use("06")
