"""The capstone's one-page report, made from what its ten checks measured.

Nothing in it is typed by hand but the sentence that the learner may add. What was not
reached is said to be missing.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from utils.colours import AFTER, BEFORE
from utils.course import portable_name
from utils.evaluation.report import STYLE
from utils.evaluation.scores import Estimate
from utils.exercises.capstone import BASELINE, PRINTED, STEPS, TUNED, Capstone
from utils.exercises.lesson_09 import check_sentence
from utils.files import write_text

NOT_REACHED = "not reached"
MEGA = 1e6
LEFT = 'style="text-align: left; white-space: normal"'
# On paper, A4 or Letter: one page, its sections in two columns.
ON_PAPER = """
@page { margin: 12mm; }
@media print {
  body { font-size: 11px; line-height: 1.35; max-width: none; margin: 0; padding: 0; }
  h1 { font-size: 1.7em; margin: 0; } h2 { font-size: 1.2em; margin: 0 0 .2em; }
  .verdict { margin: .8em 0; } td { padding: .2em .4em; }
  main { columns: 2; column-gap: 2.5em; }
  section { padding-bottom: 1.2em; } h2 { break-after: avoid; }
  tr, li { break-inside: avoid; }
}
"""


def write_page(road: Capstone, folder: Path, sentence: str | None = None) -> Path:
    """Write the report as one HTML page that needs no network.

    First used in lesson 09, section 10.

    Args:
        road: the checks, called.
        folder: where `capstone.html` belongs.
        sentence: what you say of the result, shown below the verdict if
            `check_sentence` accepts it; None for none.

    Returns:
        The file.

    Raises:
        FileError: if it cannot be written.
    """
    gain = road.measured.get("gain")
    told = sentence if gain and check_sentence(sentence, gain) else None
    return write_text(Path(folder) / "capstone.html", page(road, told))


def verdict(road: Capstone) -> str:
    """Return the result in one or two sentences."""
    gain = road.measured.get("gain")
    if gain is None:
        return "There is no decision yet."
    measured = f"{_points(gain)}, on {gain.n} questions that were not trained on"
    if road.measured["serve"] == TUNED:
        return f"Serve the tuned model: it gains {measured}."
    if gain.low > 0:
        return f"The tuned model gains {measured}, and yet the baseline is served."
    return (
        f"Serve the baseline: the interval of the gain is not above zero ({measured})."
    )


def page(road: Capstone, sentence: str | None = None) -> str:
    """Return the report as HTML.

    Args:
        road: the checks, called.
        sentence: of the learner's own.
    """
    told = f"<p>{escape(sentence)}</p>" if sentence else ""
    what = Path(road.config.data).name
    sections = (
        ("Right answers", _bars(road)),
        ("The data", _table(_data(road))),
        ("The models", _table(_models(road))),
        ("In service", _table(_service(road))),
        ("What it says", _answers(road)),
        (f"Checks passed: {road.passed} of {len(STEPS)}", _checks(road)),
    )
    body = "".join(
        f"<section><h2>{escape(name)}</h2>{text}</section>" for name, text in sections
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(what)}: from file to page</title><style>{STYLE}{ON_PAPER}</style>
</head><body>
<h1>{escape(what)}: from file to page</h1>
<p class="verdict">{escape(verdict(road))}</p>{told}
<main>{body}</main>
<p><small>Made by the course's capstone from what was measured. An interval (95%) says
where the true share lies, as far as so few questions can tell.</small></p>
</body></html>
"""


# --- its parts ---


def _data(road: Capstone) -> list[tuple[str, str]]:
    got = road.measured.get
    parts = ", ".join(f"{name} {n}" for name, n in (got("parts") or {}).items())
    by = f"the column {got('grouped_by')}" if got("grouped_by") else "likeness"
    groups = f"{got('groups')}, by {by}" if got("groups") else NOT_REACHED
    kept = [f"{kind}: {why}" for kind, why in (got("kept") or {}).items()]
    return [
        ("rows", str(got("rows", NOT_REACHED))),
        ("groups, each in one part", groups),
        ("parts", parts or NOT_REACHED),
        *(("kept with a reason", one) for one in kept),
    ]


def _models(road: Capstone) -> list[tuple[str, str]]:
    got = road.measured.get
    name, text = got("prompt", (NOT_REACHED, ""))
    tried = ", ".join(f"{one} {share:.0%}" for one, share in got("tried", {}).items())
    losses = got("held_out")
    fell = f"{losses[0]:.2f} → {losses[1]:.2f}" if losses else NOT_REACHED
    gain = got("gain")
    printed = _share(got(PRINTED)) if got(PRINTED) else ""
    return [
        ("model", _model_name(road.config.model)),
        ("prompts tried on the validation part", tried or NOT_REACHED),
        ("best prompt", f"{name}: {text}" if text else name),
        ("rows to train on", str(got("trained", NOT_REACHED))),
        ("held-out loss", fell),
        *([("no model: the note found, printed", printed)] if printed else []),
        ("gain, tuned minus baseline", _points(gain) if gain else NOT_REACHED),
    ]


def _service(road: Capstone) -> list[tuple[str, str]]:
    got = road.measured.get
    size = f"{got('archive') / MEGA:.0f} MB" if got("archive") else NOT_REACHED
    bill = got("bill")
    kind = "paid" if road.config.aws == "real" else "it would have been on AWS"
    return [
        ("served", str(got("serve", NOT_REACHED))),
        ("archive", size),
        ("created and deleted", str(got("created", NOT_REACHED))),
        (f"cost, {kind}", NOT_REACHED if bill is None else f"${bill:.4f}"),
    ]


def _answers(road: Capstone) -> str:
    shown = list(road.measured.get("answers", []))
    return _table(shown) if shown else f"<p>{NOT_REACHED}</p>"


def _checks(road: Capstone) -> str:
    lines = []
    for step, told in STEPS.items():
        found = road.verdicts.get(step)
        text = found.message if found else f"{told}: {NOT_REACHED}"
        lines.append(f"<li>{'✓' if found else '✗'} {escape(text)}</li>")
    return f'<ul style="list-style: none; padding: 0">{"".join(lines)}</ul>'


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td {LEFT}>{escape(text)}</td></tr>"
        for name, text in rows
    )
    return f"<table>{cells}</table>"


def _bars(road: Capstone) -> str:
    """Draw the share of right answers of both models, with intervals, as SVG."""
    shares = [(name, road.measured.get(name)) for name in (BASELINE, TUNED)]
    if any(share is None for _, share in shares):
        return f"<p>{NOT_REACHED}</p>"
    left, width, step = 90, 420, 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {2 * step + 6}" '
        'width="640" role="img" font-family="system-ui, sans-serif">',
        "<title>Right answers, with 95% intervals</title>",
    ]
    for number, (name, share) in enumerate(shares):
        y = number * step + 4
        low, high = (left + width * bound for bound in (share.low, share.high))
        parts.append(
            f'<text x="0" y="{y + 14}">{name}</text>'
            f'<rect x="{left}" y="{y}" width="{width * share.value:.1f}" height="18" '
            f'fill="{AFTER if name == TUNED else BEFORE}"/>'
            f'<path d="M{low:.1f} {y + 9}H{high:.1f}" stroke="currentColor"/>'
            f'<text x="{high + 8:.1f}" y="{y + 14}">{share.value:.0%}</text>'
        )
    table = _table([(name, _share(share)) for name, share in shares])
    return f"<figure>{''.join(parts)}</svg></figure>{table}"


def _model_name(model: str) -> str:
    """Return a model's name without a path of this machine."""
    return portable_name(Path(model)) if Path(model).is_absolute() else model


def _share(score: Estimate) -> str:
    return f"{score.value:.0%} ({score.low:.0%} to {score.high:.0%})"


def _points(gain: Any) -> str:
    value, low, high = (100 * part for part in (gain.value, gain.low, gain.high))
    return f"{value:+.0f} points ({low:+.0f} to {high:+.0f})"
