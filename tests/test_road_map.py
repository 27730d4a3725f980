"""utils.road_map: what it draws, and that figures and alt texts are up to date."""

from __future__ import annotations

from xml.etree import ElementTree

import nbformat
import pytest

from utils.road_map import IMAGE, NOTEBOOKS, STEPS, draw, image

each_step = pytest.mark.parametrize("step", STEPS, ids=lambda step: step.number)


@each_step
def test_one_step_is_lit(step) -> None:
    tree = ElementTree.fromstring(draw(step.number))
    texts = ["".join(text.itertext()) for text in tree.iter() if "text" in text.tag]
    assert [text[:2] for text in texts[::2]] == [place.number for place in STEPS]
    boxes = [
        box for box in tree.iter() if "rx" in box.attrib and "stroke" in box.attrib
    ]
    lit = [box.attrib["fill"] != "#ffffff" for box in boxes]
    assert lit == [place is step for place in STEPS]


@each_step
def test_figure_and_alt_text_are_what_the_command_writes(step) -> None:
    figure = NOTEBOOKS / "figures" / f"road_map_{step.number}.svg"
    remedy = "run `python -m utils.road_map`"
    assert figure.read_text(encoding="utf-8").strip() == draw(step.number), remedy
    notebook = nbformat.read(NOTEBOOKS / step.notebook, nbformat.NO_CONVERT)
    shown = [found for cell in notebook.cells for found in IMAGE.findall(cell.source)]
    assert shown == [image(step.number)], remedy
    assert f'"{step.title.lower()}" is lit' in image(step.number)


def test_an_unknown_step_is_refused() -> None:
    for use in (draw, image):
        with pytest.raises(ValueError, match="no step '99' on the road map: 01, 02"):
            use("99")


def test_the_steps_are_the_notebooks_that_exist() -> None:
    names = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
    assert [step.notebook for step in STEPS] == names
