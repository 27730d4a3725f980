"""What an evaluation leaves behind: evaluation.json for programs, a page for people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from utils.colours import AFTER, BEFORE
from utils.course import CourseError
from utils.evaluation.scores import Estimate
from utils.files import write_text

SCHEMA = 1
SECTIONS = ("model", "data", "adapter", "right", "loss", "text", "skills", "retrieval")
"""What every report holds; `write_report` adds `schema`."""

PART_NAMES = {
    "wording": "Trained facts, asked in other words",
    "fact": "Facts that no training row mentions",
    "unread": "Facts it has never read",
    "test": "Questions held out",
    "validation": "Questions that chose the epoch",
}

STYLE = """
:root { color-scheme: light dark; --blue: AFTER; --grey: BEFORE; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52em; margin: 2em auto;
  padding: 0 1em; }
h1 { line-height: 1.2; } h2 { margin-top: 1.8em; }
.verdict { font-size: 1.2em; border-left: .3em solid var(--blue); padding-left: .8em; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: right; padding: .35em .6em; border-bottom: 1px solid #8884; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
small, figcaption { opacity: .75; } figure { margin: 1em 0; }
svg { max-width: 100%; height: auto; } svg text { fill: currentColor; font-size: 13px; }
""".replace("AFTER", AFTER).replace("BEFORE", BEFORE)


class ReportError(CourseError, ValueError):
    """A report that cannot be written or read; the message says what to do."""


def fingerprint(adapter: str | Path) -> str:
    """Return the SHA-256 of an adapter's weights, to know later what was evaluated.

    First used in lesson 05, section 9.
    """
    weights = Path(adapter) / "adapter_model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def write_report(folder: str | Path, report: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write evaluation.json and evaluation.html.

    First used in lesson 05, section 9.

    Args:
        folder: where to.
        report: the `SECTIONS`, with an `Estimate` wherever something was measured:
            `right`, `loss` and `text` by part, then by system ("base", "tuned"),
            `right` with the paired "difference" as well; `skills` by skill, then by
            system; `retrieval` by part, then by way. Further entries are kept.

    Returns:
        Paths of the two files.

    Raises:
        ReportError: if a section is missing or a file cannot be written.
    """
    missing = [name for name in SECTIONS if name not in report]
    if missing:
        raise ReportError(
            f"The report has no {', '.join(missing)}: run the notebook's cells above "
            "in order, then write it again."
        )
    plain = json.loads(json.dumps({"schema": SCHEMA} | dict(report), default=_plain))
    text = json.dumps(plain, indent=1, ensure_ascii=False) + "\n"
    return (
        write_text(Path(folder) / "evaluation.json", text),
        write_text(Path(folder) / "evaluation.html", page(plain)),
    )


def _plain(value: Any) -> dict[str, float]:
    """Turn an estimate into what JSON can hold."""
    if isinstance(value, Estimate):
        return asdict(value)
    raise TypeError(
        f"A report cannot hold {type(value).__name__} {value!r}: give an Estimate, or "
        "what JSON has."
    )


def read_report(file: str | Path) -> dict[str, Any]:
    """Read an evaluation.json.

    First used in lesson 05, section 9.

    Raises:
        ReportError: if it is none, or of another version of the course.
    """
    file = Path(file)
    remedy = "run 05_evaluation.ipynb again"
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        schema = report["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(
            f"{file.name} is no readable report ({type(error).__name__}): {remedy}."
        ) from None
    missing = [name for name in SECTIONS if name not in report]
    if schema != SCHEMA or missing:
        found = f"lacks {missing[0]}" if missing else f"is of schema {schema}"
        raise ReportError(f"{file.name} {found}; expected schema {SCHEMA}: {remedy}.")
    return report


def verdict(report: Mapping[str, Any]) -> str:
    """Say where tuning helps, where not, and where most answers are still wrong."""
    better, mostly_wrong, no_better = [], [], []
    for part, row in report["right"].items():
        name = _lower(PART_NAMES.get(part, part))
        if row["tuned"]["value"] < 0.5:
            mostly_wrong.append(name)
        elif row["difference"]["low"] > 0:
            better.append(name)
        else:
            no_better.append(name)
    sentences = []
    for start, names in (
        ("The tuned model answers better than the one it was made from: ", better),
        ("It does not answer better, or too few questions were asked: ", no_better),
        ("Most of its answers are wrong: ", mostly_wrong),
    ):
        if names:
            sentences.append(start + "; ".join(names) + ".")
    return " ".join(sentences)


def page(report: Mapping[str, Any]) -> str:
    """Return the report as one HTML page without scripts, for any browser."""
    right = {PART_NAMES.get(part, part): row for part, row in report["right"].items()}
    gains = "".join(
        _row(name, _share(row["base"]), _share(row["tuned"]), _gain(row["difference"]))
        for name, row in right.items()
    )
    systems = list(next(iter(report["skills"].values()), {}))
    skills = "".join(
        _row(name, *(_share(row[system]) for system in systems))
        for name, row in report["skills"].items()
    )
    ways = list(next(iter(report["retrieval"].values()), {}))
    found = "".join(
        _row(PART_NAMES.get(part, part), *(_share(row[way]) for way in ways))
        for part, row in report["retrieval"].items()
    )
    feedback = report.get("feedback")
    people = (
        f"<h2>What a blind comparison preferred</h2><p>{escape(feedback)}.</p>"
        if feedback
        else ""
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Was the fine-tuning worth it?</title><style>{STYLE}</style></head><body>
<h1>Was the fine-tuning worth it?</h1>
<p class="verdict">{escape(verdict(report))}</p>
<figure>{_bars(right)}
<figcaption>Share of questions answered right, before and after. The thin lines are 95%
intervals: where the true share lies, as far as so few questions can tell.</figcaption>
</figure>
<h2>Right answers</h2>
<table>{_head("questions on", "before", "after", "gain")}{gains}</table>
<p>All systems were asked the same questions. A gain whose interval includes zero may be
luck.</p>
<h2>What it lost elsewhere</h2>
<table>{_head("skill", *systems)}{skills}</table>
<p>Tuning on one task can cost others. Replay mixes old tasks into the new ones.</p>
<h2>Looking answers up instead</h2>
<table>{_head("questions on", *ways)}{found}</table>
<p>Looking up needs no training, and follows every change of the documents.</p>
{people}
<h2>What was evaluated</h2>
<p><small>Model {escape(str(report["model"]))}, data {escape(str(report["data"]))},
adapter {escape(str(report["adapter"])[:12])}. The figures are in
<a href="evaluation.json">evaluation.json</a>.</small></p>
</body></html>
"""


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _head(*cells: str) -> str:
    return "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in cells) + "</tr>"


def _share(score: Mapping[str, float]) -> str:
    return f"{score['value']:.0%} ({score['low']:.0%}–{score['high']:.0%})"


def _gain(score: Mapping[str, float]) -> str:
    low, high = 100 * score["low"], 100 * score["high"]
    return f"{100 * score['value']:+.0f} points ({low:+.0f} to {high:+.0f})"


def _bars(right: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Draw two bars a row of the table, with their intervals, as SVG."""
    left, width, step = 320, 330, 58
    height = step * len(right) + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 {height}" '
        'width="700" role="img" font-family="system-ui, sans-serif">',
        "<title>Right answers before and after, with 95% intervals</title>",
    ]
    for number, (name, row) in enumerate(right.items()):
        top = step * number + 4
        parts.append(f'<text x="0" y="{top + 25}">{escape(name)}</text>')
        for place, (system, colour) in enumerate((("base", BEFORE), ("tuned", AFTER))):
            score, y = row[system], top + 21 * place
            low, high = (left + width * score[bound] for bound in ("low", "high"))
            parts.append(
                f'<rect x="{left}" y="{y}" width="{width * score["value"]:.1f}" '
                f'height="17" fill="{colour}"/>'
                f'<path d="M{low:.1f} {y + 8.5}H{high:.1f}" stroke="currentColor"/>'
                f'<text x="{high + 6:.1f}" y="{y + 13}">{score["value"]:.0%}</text>'
            )
    base = height - 6
    parts.append(
        f'<rect x="{left}" y="{base - 10}" width="11" height="11" fill="{BEFORE}"/>'
        f'<text x="{left + 16}" y="{base}">before</text>'
        f'<rect x="{left + 80}" y="{base - 10}" width="11" height="11" fill="{AFTER}"/>'
        f'<text x="{left + 96}" y="{base}">after</text>'
    )
    return "".join(parts) + "</svg>"
