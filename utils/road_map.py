"""The course as a row of steps, drawn as the figures at the head of the notebooks.

python -m utils.road_map       # writes notebooks/figures and the alt text of each
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

import nbformat

from utils.colours import CARD, INK, LIT, LIT_INK, UNLIT
from utils.course import ROOT
from utils.files import write_text

NOTEBOOKS = ROOT / "notebooks"
IMAGE = re.compile(r"!\[[^]]*\]\(figures/road_map_\d\d\.svg\)")


@dataclass(frozen=True)
class Step:
    """One notebook on the road map."""

    number: str
    notebook: str
    title: str
    result: str


STEPS = (
    Step("01", "01_language_models.ipynb", "Understand", "a model, opened"),
    Step("02", "02_prompting.ipynb", "Prompt", "measured prompts"),
    Step("03", "03_dataset_templating.ipynb", "Template", "data set"),
    Step("04", "04_lora_training.ipynb", "Fine-tune", "LoRA adapter"),
    Step("05", "05_evaluation.ipynb", "Evaluate", "a decision"),
    Step("06", "06_djl_deployment.ipynb", "Deploy", "endpoint"),
    Step("07", "07_api_and_web_app.ipynb", "Publish", "web page"),
    Step("08", "08_training_jobs.ipynb", "Retrain", "next version"),
    Step("09", "09_capstone.ipynb", "Capstone", "your file, served"),
)


def draw(step: str) -> str:
    """Return the road map as SVG: its own pale card, so that any theme can carry it.

    Args:
        step: number of the step that is lit, such as "03".

    Raises:
        ValueError: when no notebook has this number.
    """
    lit = _find(step)
    titles = (
        f"[{place.number} {place.title}]"
        if place is lit
        else f"{place.number} {place.title}"
        for place in STEPS
    )
    width, height, gap, margin = 150, 74, 34, 14
    total = len(STEPS) * width + (len(STEPS) - 1) * gap + 2 * margin
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" '
        f'height="{height + 2 * margin}" role="img" '
        f'viewBox="0 0 {total} {height + 2 * margin}" '
        'font-family="sans-serif" text-anchor="middle">',
        f"<title>Road map: {escape(' → '.join(titles))}</title>",
        f'<rect width="{total}" height="{height + 2 * margin}" rx="10" fill="{CARD}"/>',
    ]
    for position, place in enumerate(STEPS):
        left = margin + position * (width + gap)
        fill, ink = (LIT, LIT_INK) if place is lit else (UNLIT, INK)
        center = left + width // 2
        parts.append(
            f'<rect x="{left}" y="{margin}" width="{width}" height="{height}" '
            f'rx="8" fill="{fill}" stroke="{LIT}"/>'
            f'<text x="{center}" y="{margin + 31}" font-size="17" '
            f'font-weight="bold" fill="{ink}">{place.number} '
            f"{escape(place.title)}</text>"
            f'<text x="{center}" y="{margin + 55}" font-size="13" '
            f'fill="{ink}">→ {escape(place.result)}</text>'
        )
        if position:
            start, middle = left - gap + 5, margin + height // 2
            parts.append(
                f'<path d="M{start} {middle}h{gap - 15}m-7 -6l7 6l-7 6" '
                f'fill="none" stroke="{INK}" stroke-width="2"/>'
            )
    return "".join(parts) + "</svg>"


def image(step: str) -> str:
    """Return the Markdown that shows the road map in a notebook, with its alt text.

    Raises:
        ValueError: when no notebook has this number.
    """
    titles = ", ".join(place.title.lower() for place in STEPS)
    return (
        f"![Road map of the course: {titles}; the step "
        f'"{_find(step).title.lower()}" is lit](figures/road_map_{step}.svg)'
    )


def main() -> None:
    """Write the figures, and the alt text into the notebooks that show them."""
    for place in STEPS:
        figure = NOTEBOOKS / "figures" / f"road_map_{place.number}.svg"
        write_text(figure, draw(place.number) + "\n")
        path = NOTEBOOKS / place.notebook
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                shown = image(place.number).replace("\\", r"\\")
                cell.source = IMAGE.sub(shown, cell.source)
        write_text(path, nbformat.writes(notebook).rstrip("\n") + "\n")
        print(f"{place.notebook}: {figure.name}")


def _find(step: str) -> Step:
    """Return the step with this number."""
    for place in STEPS:
        if place.number == step:
            return place
    numbers = ", ".join(place.number for place in STEPS)
    raise ValueError(
        f"There is no step {step!r} on the road map: {numbers} are; give one of them."
    )


if __name__ == "__main__":
    main()
