"""What the notebooks show: text, source, tokens in colour, and plots.

HTML and text are built without random parts, so that stored outputs can be compared.
Plots are PNG on a white ground: readable in light and dark themes.
"""

from __future__ import annotations

import html
import inspect
import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from IPython.display import HTML, Image, Markdown, display

from utils.colours import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LEARNED_GROUND,
    ORANGE,
    PADDING_OUTLINE,
    READ_GROUND,
    SERIES,
)
from utils.helpers import IGNORED

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from utils.evaluation.scores import Difference, Estimate, Proportion

Guess = EllipsisType | Real | Sequence | Mapping
"""What a reader writes for `my_guess`; `...` as long as the cell is untouched."""

LOSSES = (
    ("loss", "training", BLUE, "o"),
    ("eval_loss", "held out", ORANGE, "s"),
    ("eval_reworded_loss", "trained facts, reworded", GREEN, "^"),
)
"""In a Trainer's log: key, name, colour and marker."""
PLOTTED_SHARES = "course_plotted_shares"
LABEL_WIDTH = 9  # characters; a bar's name may take several lines
FIGURE_SIZE, FIGURE_LINE = 8, 10.5  # of the figures below an axis, in points

# The margin lets one see where a token ends.
_TOKEN = "border-radius:3px;margin-right:2px"
LEARNED = f"{_TOKEN};background:{LEARNED_GROUND}"
MASKED = f"{_TOKEN};background:{READ_GROUND};opacity:.75"
PADDING = f"{_TOKEN};outline:1px dotted {PADDING_OUTLINE};opacity:.55"


# --- text and source ---


def in_md(text: str) -> Markdown:
    """Return a model's answer as a quotation, exactly as written.

    First used in lesson 02, section 1.

    Raises:
        TypeError: if it is no text.
    """
    if not isinstance(text, str):
        raise TypeError(
            f"Expected the answer's text, found {type(text).__name__}: decode it."
        )
    lines = html.escape(text, quote=False).strip().split("\n") or [""]
    # Signs that Markdown would act upon stand for themselves.
    escaped = [re.sub(r"([\\`*_#\[\]|~$])", r"\\\1", line) for line in lines]
    return Markdown("\n".join(f"> {line}  " for line in escaped))


def show_source(*things: Any) -> None:
    """Show the source of functions, classes, modules or files, in that order.

    First used in lesson 03, section 7.

    Raises:
        FileNotFoundError: if a path leads nowhere.
    """
    for thing in things:
        if isinstance(thing, str | Path):
            path = Path(thing)
            source = path.read_text(encoding="utf-8")
            language = {".py": "python", ".json": "json"}.get(path.suffix, "text")
        else:
            # A method's lines are indented as they stand in its class.
            source, language = textwrap.dedent(inspect.getsource(thing)), "python"
        fence = "```"
        while fence in source:
            fence += "`"
        display(Markdown(f"{fence}{language}\n{source.rstrip()}\n{fence}"))


def with_interval(estimate: Estimate) -> str:
    """Return a share with its 95% interval as text; a difference with its sign.

    First used in lesson 02, section 4.
    """
    from utils.evaluation.scores import Difference

    sign = "+" if isinstance(estimate, Difference) else ""
    value, low, high = (
        f"{bound:{sign}.0%}" for bound in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ({low} to {high})"


def score_table(
    hits: Mapping[str, Mapping[Any, Sequence[bool]]],
) -> pandas.DataFrame:
    """Return shares with their 95% intervals: one column a series, one row a variant.

    First used in lesson 02, section 2.

    Args:
        hits: column → row → whether each answer is one.
    """
    import pandas

    from utils.evaluation.scores import proportions

    columns = {name: proportions(series) for name, series in hits.items()}
    return pandas.DataFrame(columns).map(with_interval)


# --- the reader's guess ---


def guess(axis: Axes, my_guess: Guess, label: str = "your guess") -> None:
    """Draw a reader's guess into a plot; nothing, where it is still `...`.

    Args:
        axis: of matplotlib, which may have its legend already; the guess is added.
        my_guess: a number is a dotted line across; several numbers are crosses at 0, 1,
            2 and so on, where bars with names stand; x → y are crosses at each x. One
            of several may still be `...`.
        label: what the legend says.

    Raises:
        ValueError: if it is no number.
    """
    if _draw_guess(axis, my_guess, label):
        axis.legend(frameon=False)


def guess_line(my_guess: Any, measured: Any, form: str = "{}") -> Markdown:
    """Return a line that compares a reader's guess with what came out.

    First used in lesson 01, section 1.

    Args:
        my_guess: a number or a text; `...` where the cell is untouched.
        measured: what came out, of the same kind.
        form: how both are written, such as "{:.0%}", "{:.1f} nats" or "{!r}". Where it
            writes percent, a guess of 30 means 0.3.

    Raises:
        ValueError: if a number was measured and the guess is none.
    """
    found = f"Measured: **{form.format(measured)}**."
    if my_guess is ...:
        return Markdown(
            f"{found} You have not guessed: write yours in place of `...` and run the "
            "cell again."
        )
    if isinstance(measured, Real) and not isinstance(measured, bool):
        my_guess = _number(my_guess, share="%}" in form)
    said = f"Your guess: **{form.format(my_guess)}**."
    if form.format(my_guess) == form.format(measured):
        return Markdown(f"{said} {found} You were right.")
    if isinstance(my_guess, Real) and not isinstance(my_guess, bool):
        side = "low" if my_guess < measured else "high"
        return Markdown(f"{said} {found} Your guess was too {side}.")
    return Markdown(f"{said} {found}")


def _number(value: Any, share: bool = False) -> float:
    """Return a guess as a number; of a share, 30 counts as 30%."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ValueError(
            f"my_guess holds {value!r}: write a number in place of `...`"
            + (", such as 0.3 for 30%." if share else ".")
        )
    return value / 100 if share and value > 1 else value


def _draw_guess(
    axis: Axes, my_guess: Guess, label: str = "your guess", share: bool = False
) -> bool:
    """Draw it without a legend; return whether there was something to draw."""
    from matplotlib.patheffects import withStroke

    # With a white edge it can be seen on a bar as well.
    edge = [withStroke(linewidth=4, foreground="white")]
    look = {"color": INK, "label": label, "zorder": 3, "path_effects": edge}
    if isinstance(my_guess, Mapping):
        points = dict(my_guess)
    elif isinstance(my_guess, Sequence) and not isinstance(my_guess, str):
        points = dict(enumerate(my_guess))
    elif my_guess is ...:
        return False
    else:
        axis.axhline(_number(my_guess, share), linestyle=":", **look)
        return True
    points = {x: _number(y, share) for x, y in points.items() if y is not ...}
    if points:
        places, heights = list(points), list(points.values())
        axis.plot(places, heights, "x", markersize=9, markeredgewidth=2, **look)
    return bool(points)


# --- 01: language models ---


def plot_chances(
    panels: Mapping[str, Mapping[str, float]], marked: Sequence[str] = ()
) -> None:
    """Plot probabilities of tokens as bars, the panels side by side.

    First used in lesson 01, section 1.

    Args:
        panels: title → name of a bar → probability. A bar `the rest` is grey.
        marked: for each panel, the name of the bar that is orange, if it has one.

    Raises:
        ValueError: if there is nothing to plot, or not one mark for each panel.
    """
    if not panels or not all(panels.values()):
        raise ValueError(
            "There are no probabilities to plot: give each panel at least one."
        )
    marked = list(marked) or [""] * len(panels)
    if len(marked) != len(panels):
        raise ValueError(
            f"{len(marked)} marked bars for {len(panels)} panels: name one for each, "
            'or "" where none is marked.'
        )
    figure, _ = _figure(columns=len(panels))
    most = max(max(chances.values()) for chances in panels.values())
    longest = max(map(len, panels.values()))
    figure.set_size_inches(min(10, 2.5 + 2 * len(panels)), 1.3 + 0.2 * longest)
    shared = len({tuple(chances) for chances in panels.values()}) == 1
    for number, (axes, title) in enumerate(zip(figure.axes, panels, strict=True)):
        chances = panels[title]
        colours = [
            GREY if name == "the rest" else ORANGE if name == marked[number] else BLUE
            for name in chances
        ]
        axes.barh(list(chances), list(chances.values()), color=colours)
        axes.set(title=title, xlim=(0, min(1.05, 1.1 * most)), xlabel="probability")
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", alpha=0.25)
        axes.tick_params(labelleft=not shared or number == 0)
    _show(figure, f"Probabilities of the next token, in panels: {', '.join(panels)}")


def plot_words(
    panels: Mapping[str, Any], words: Sequence[str], groups: Sequence[str]
) -> None:
    """Plot words as points, coloured by group, named where there is room.

    First used in lesson 01, section 4.

    Args:
        panels: title → points, of shape (words, 2).
        words: their names.
        groups: the group of each word.

    Raises:
        ValueError: if there is not one point and one group for each word.
    """
    import numpy as np

    if not panels or not len(words) == len(groups) > 0:
        raise ValueError(
            f"{len(words)} words and {len(groups)} groups: give at least one word, and "
            "a group for each."
        )
    kinds = list(dict.fromkeys(groups))
    colours = {kind: SERIES[n % len(SERIES)] for n, kind in enumerate(kinds)}
    figure, _ = _figure(columns=len(panels))
    figure.set_size_inches(5 * len(panels), 4.4)
    for axes, (title, points) in zip(figure.axes, panels.items(), strict=True):
        points = np.asarray(points)
        if points.shape != (len(words), 2):
            raise ValueError(
                f"{title!r} has points of shape {points.shape}, for {len(words)} words "
                f"expected ({len(words)}, 2): give a point for each."
            )
        for kind in kinds:
            members = [n for n, group in enumerate(groups) if group == kind]
            axes.plot(*points[members].T, ".", color=colours[kind], label=kind)
        span, named = np.ptp(points, axis=0), []
        for n in points[:, 0].argsort()[::-1]:
            apart = [abs(points[n] - other) / span for other in named]
            if all(across > 0.2 or up > 0.05 for across, up in apart):
                named.append(points[n])
                colour = colours[groups[n]]
                axes.annotate(f" {words[n]}", points[n], fontsize=8, color=colour)
        axes.set(title=title, xticks=[], yticks=[], xmargin=0.15)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(kinds), frameon=False)
    _show(figure, f"{', '.join(kinds)} as points, in panels: {', '.join(panels)}")


# --- 02: prompting, and later lessons ---


def plot_proportions(
    scores: Mapping[Any, Proportion],
    x: str,
    y: str,
    guess: float | None = None,
    difference: Mapping[Any, Difference] | None = None,
    my_guess: Guess = ...,
) -> None:
    """Plot proportions with 95% intervals: a line over numbers, else points.

    The figures themselves stand below the axis, with the sample size.

    First used in lesson 02, section 6.

    Args:
        scores: what was varied → proportion.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        guess: the share that guessing gets, as a dashed line.
        difference: what was varied → how much better, one more row below the axis.
        my_guess: the reader's: a share, one for each point, or what was varied → share.
    """
    if not scores:
        raise ValueError("There are no scores to plot: give at least one.")
    figure, axes = _figure()
    legend, names = [], []
    if guess is not None:
        legend.append(axes.axhline(guess, color=GREY, linestyle="--"))
        names.append("guessing")
    _draw_scores(figure, axes, {y: scores}, x, y, difference or {})
    if _draw_guess(axes, _placed(my_guess, scores), share=True):
        legend.append(axes.lines[-1])
        names.append("your guess")
    if legend:
        axes.legend(legend, names, frameon=False)
    _show(figure, f"{y} against {x}, with 95% intervals", _values({y: scores}))


def plot_curves(
    curves: Mapping[str, Mapping[Any, Proportion]],
    x: str,
    y: str,
    difference: Mapping[Any, Difference] | None = None,
    my_guess: Guess = ...,
) -> None:
    """Plot several series of proportions with 95% intervals, on the same axes.

    Lines over numbers; over names, points beside each other. The figures themselves
    stand below the axis, with the sample size.

    First used in lesson 02, section 5.

    Args:
        curves: name of a series → what was varied → proportion. All series vary the
            same.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        difference: what was varied → how much better, one more row below the axis.
        my_guess: the reader's: a share, one for each place, or what was varied → share.

    Raises:
        ValueError: if there is nothing to plot, or the series vary different things.
    """
    if not curves or not all(curves.values()):
        raise ValueError("There are no scores to plot: give at least one.")
    keys = list(next(iter(curves.values())))
    for name, scores in curves.items():
        if list(scores) != keys:
            raise ValueError(
                f"The series {name!r} has scores for {list(scores)}; the first one has "
                f"them for {keys}: give all series the same."
            )
    figure, axes = _figure()
    _draw_scores(figure, axes, curves, x, y, difference or {})
    drawn = _draw_guess(axes, _placed(my_guess, keys), share=True)
    columns = len(curves) + drawn
    figure.legend(loc="outside upper center", ncols=columns, frameon=False)
    names = ", ".join(curves)
    description = f"{y} against {x}, with 95% intervals, for: {names}"
    _show(figure, description, _values(curves))


def _values(curves: Mapping[str, Mapping[Any, Proportion]]) -> list[float]:
    """Return all shares that are plotted."""
    return [score.value for scores in curves.values() for score in scores.values()]


def _placed(my_guess: Guess, keys: Iterable[Any], bars: bool = False) -> Guess:
    """Return a guess with places on the axis instead of the names that stand there.

    Numbers are their own places, but below bars.
    """
    keys = list(keys)
    numeric = not bars and all(isinstance(key, int | float) for key in keys)
    if isinstance(my_guess, Sequence) and not isinstance(my_guess, str):
        my_guess = dict(zip(keys, my_guess, strict=False))
    if not isinstance(my_guess, Mapping):
        return my_guess
    if unknown := [name for name in my_guess if name not in keys]:
        raise ValueError(
            f"my_guess names {unknown}, but plotted are {keys}: use these names."
        )
    return {
        name if numeric else keys.index(name): share for name, share in my_guess.items()
    }


def _draw_scores(
    figure: Any,
    axes: Axes,
    curves: Mapping[str, Mapping[Any, Proportion]],
    x: str,
    y: str,
    difference: Mapping[Any, Difference],
) -> None:
    """Draw points with intervals, and below the axis a row of figures a series."""
    keys = list(next(iter(curves.values())))
    numeric = all(isinstance(key, int | float) for key in keys)
    places = keys if numeric else list(range(len(keys)))
    _draw_intervals(axes, curves, places, numeric)
    font = 10 if len(keys) < 6 else 8
    room = int(640 / len(keys) / font)  # letters side by side under each point
    names = [textwrap.fill(str(key), room, break_long_words=False) for key in keys]
    label_height = 12 * (1 + max(map(_breaks, names)))
    below = _write_figures(axes, curves, places, difference, 10 + label_height)
    figure.set_figheight(figure.get_figheight() + (below - 18) / 72)
    axes.set_xticks(places, names, fontsize=font)
    if not numeric:
        axes.set_xlim(-0.6, len(keys) - 0.4)
    axes.set(ylabel=y, ylim=(-0.03, 1.03))
    axes.set_xlabel(x, labelpad=below - 2 - label_height)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _draw_intervals(
    axes: Axes,
    curves: Mapping[str, Mapping[Any, Proportion]],
    places: Sequence[float],
    numeric: bool,
) -> None:
    """Draw each series, joined by a line where the places are numbers."""
    apart = 0.16
    if numeric:
        apart = 0.02 * (max(places) - min(places)) if len(curves) > 1 else 0
    for number, (name, scores) in enumerate(curves.items()):
        # Side by side, so that no interval hides another one.
        shift = apart * (number - (len(curves) - 1) / 2)
        axes.errorbar(
            [place + shift for place in places],
            [score.value for score in scores.values()],
            yerr=[
                [max(0.0, score.value - score.low) for score in scores.values()],
                [max(0.0, score.high - score.value) for score in scores.values()],
            ],
            fmt=("os^Dv"[number % 5]) + ("-" if numeric else ""),
            color=SERIES[number % len(SERIES)],
            capsize=4,
            linewidth=1.5,
            label=name,
        )


def _write_figures(
    axes: Axes,
    curves: Mapping[str, Mapping[Any, Proportion]],
    places: Sequence[float],
    difference: Mapping[Any, Difference],
    below: float,
) -> float:
    """Write the figures below the axis, from `below` points on; return where they end.

    One row a series, in its colour, and one for the differences where there are any.
    """
    row = 2 * FIGURE_LINE + 3
    counts = sorted(
        {score.n for scores in curves.values() for score in scores.values()}
    )
    n = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    _write_below(axes, None, f"n = {n},\n95% interval", below, GREY)
    for number, scores in enumerate(curves.values()):
        colour = SERIES[number % len(SERIES)]
        for place, score in zip(places, scores.values(), strict=True):
            text = f"{score.value:.0%}\n{100 * score.low:.0f} to {score.high:.0%}"
            _write_below(axes, place, text, below, colour)
        below += row
    if not difference:
        return below
    _write_below(axes, None, "difference\nin points", below, GREY)
    for key, place in zip(next(iter(curves.values())), places, strict=True):
        if key in difference:
            gain = difference[key]
            value, low, high = (
                f"{100 * bound:+.0f}" for bound in (gain.value, gain.low, gain.high)
            )
            _write_below(axes, place, f"{value}\n{low} to {high}", below, "black")
    return below + row


def _breaks(text: str) -> int:
    return text.count("\n")


def _write_below(
    axes: Axes, place: float | None, text: str, below: float, colour: str
) -> None:
    """Write under the axis at a place of it, or left of it, `below` points down."""
    axes.annotate(
        text,
        xy=(-0.025, 0) if place is None else (place, 0),
        xycoords="axes fraction" if place is None else ("data", "axes fraction"),
        xytext=(0, -below),
        textcoords="offset points",
        ha="right" if place is None else "center",
        va="top",
        fontsize=FIGURE_SIZE,
        color=colour,
        annotation_clip=False,
    )


def plot_bars(
    bars: Mapping[str, Mapping[Any, float | Estimate]],
    x: str,
    y: str,
    my_guess: Guess = ...,
) -> None:
    """Plot groups of bars with their heights, one bar of each series in a group.

    First used in lesson 05, section 5.

    Args:
        bars: name of a series → group → height, with its 95% interval where it is an
            estimate. All series have the same groups.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        my_guess: the reader's: a height, one for each group, or group → height.

    Raises:
        ValueError: if there is nothing to plot, or a series has other groups.
    """
    if not bars or not all(bars.values()):
        raise ValueError("There are no bars to plot: give each series at least one.")
    groups = list(next(iter(bars.values())))
    width = 0.8 / len(bars)
    figure, axes = _figure()
    for number, (name, series) in enumerate(bars.items()):
        if list(series) != groups:
            raise ValueError(
                f"The series {name!r} has the groups {list(series)}; the first one "
                f"has {groups}: give all series the same."
            )
        shift = width * (number - (len(bars) - 1) / 2)
        heights, lows, highs = (
            [getattr(height, which, height) for height in series.values()]
            for which in ("value", "low", "high")
        )
        drawn = axes.bar(
            [place + shift for place in range(len(groups))],
            heights,
            width,
            color=SERIES[number % len(SERIES)],
            label=name,
            yerr=[
                [value - low for value, low in zip(heights, lows, strict=True)],
                [high - value for value, high in zip(heights, highs, strict=True)],
            ],
        )
        digits = 2 if max(heights) < 10 else 0 if min(heights) >= 2 else 1
        labels = [_height(height, digits) for height in series.values()]
        axes.bar_label(drawn, labels=labels, fontsize=8)
    axes.set_xticks(range(len(groups)), [str(group) for group in groups])
    axes.set(xlabel=x, ylabel=y)
    axes.margins(y=0.1)
    columns = len(bars) + _draw_guess(axes, _placed(my_guess, groups, bars=True))
    figure.legend(loc="outside upper center", ncols=columns, frameon=False)
    description = f"{y} against {x}, as bars, for: {', '.join(bars)}"
    _show(figure, description, _shares_among(bars))


def _shares_among(bars: Mapping[str, Mapping[Any, float | Estimate]]) -> list[float]:
    """Return the heights of bars that are proportions."""
    from utils.evaluation.scores import Proportion

    heights = [height for series in bars.values() for height in series.values()]
    return [height.value for height in heights if isinstance(height, Proportion)]


def _height(height: float | Estimate, digits: int) -> str:
    """Return what stands on a bar: its height and, of an estimate, the interval."""
    if not hasattr(height, "low"):
        return f"{height:.{digits}f}"
    return (
        f"{height.value:.{digits}f}\n"
        f"{height.low:.{digits}f} to {height.high:.{digits}f}"
    )


# --- 03: data set and template ---


def show_tokens(
    ids: Sequence[int],
    labels: Sequence[int],
    tokenizer: Any,
    mask: Sequence[int] | None = None,
) -> HTML:
    """Return the tokens of a row, coloured by what the loss sees of them.

    Green tokens are learned, grey ones are read only, dotted ones are padding.

    First used in lesson 03, section 4.

    Args:
        ids: token ids; a tensor will do.
        labels: as many labels; -100 where nothing is learned.
        tokenizer: turns ids into text.
        mask: the attention mask, where there is padding.
    """
    ids, labels = [int(i) for i in ids], [int(label) for label in labels]
    mask = [1] * len(ids) if mask is None else [int(bit) for bit in mask]
    if not len(ids) == len(labels) == len(mask):
        raise ValueError(
            f"{len(ids)} ids, {len(labels)} labels and {len(mask)} mask values: a row "
            "has as many of each. Yours come from different rows."
        )
    kinds = [
        "padding" if not bit else "masked" if label == IGNORED else "learned"
        for bit, label in zip(mask, labels, strict=True)
    ]
    styles = {"learned": LEARNED, "masked": MASKED, "padding": PADDING}
    names = {"learned": "learned", "masked": "read only", "padding": "padding"}
    spans = [
        f'<span style="{styles[kind]}" title="{token_id} · {names[kind]}">'
        f"{_visible(tokenizer.decode([token_id]))}</span>"
        for token_id, kind in zip(ids, kinds, strict=True)
    ]
    legend = " &nbsp; ".join(
        f'<span style="{styles[kind]}">&nbsp;{kinds.count(kind)} {names[kind]}&nbsp;'
        "</span>"
        for kind in styles
        if kind in kinds
    )
    return HTML(
        '<div style="line-height:1.75;font-family:monospace;white-space:pre-wrap;'
        'max-width:60em">' + "&#8203;".join(spans) + f"</div><p>{legend} tokens</p>"
    )


def _visible(token: str) -> str:
    """Return a token's text with its line breaks shown and made."""
    return html.escape(token).replace("\n", "⏎<br>") or "∅"


def plot_lengths(lengths: Mapping[str, Sequence[int]], limit: int) -> None:
    """Plot how many tokens the rows of each part have, and where the limit lies.

    First used in lesson 03, section 8.
    """
    figure, axes = _figure()
    longest = max((max(part) for part in lengths.values() if len(part)), default=limit)
    width = max(1, math.ceil(longest / 40))
    axes.hist(
        list(lengths.values()),
        bins=range(0, longest + 2 * width, width),
        stacked=True,
        label=list(lengths),
        color=[SERIES[i % len(SERIES)] for i in range(len(lengths))],
    )
    axes.axvline(limit, color=GREY, linestyle="--")
    axes.annotate(
        f"limit {limit}",
        (limit, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        va="top",
        color=GREY,
    )
    axes.set(xlabel="tokens in a row, prompt and answer", ylabel="rows")
    axes.legend(frameon=False)
    _show(figure, f"Histogram of row lengths; the limit is {limit} tokens")


# --- 04: training with LoRA ---


def plot_loss_panels(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Plot training and held-out loss of several runs side by side, each from zero.

    First used in lesson 04, section 5.

    Args:
        histories: title → `trainer.state.log_history`; may hold `eval_reworded_loss`.

    Raises:
        ValueError: if a history holds no loss.
    """
    figure, panels = _figure(columns=max(2, len(histories)))
    figure.set_size_inches(3 * len(panels), 3.2)
    for axes, (title, history) in zip(panels, histories.items(), strict=False):
        for key, name, colour, marker in LOSSES:
            points = [(row["epoch"], row[key]) for row in history if key in row]
            if points:
                look = {"color": colour, "marker": marker, "markersize": 4}
                look["clip_on"] = False
                axes.plot(*zip(*points, strict=True), label=name, **look)
        if not axes.lines:
            raise ValueError(
                f"The history {title!r} holds no losses: train first, and log at least "
                "once."
            )
        axes.set(title=title, xlabel="epoch", xlim=(0, None), ylim=(0, None))
    panels[0].set_ylabel("loss (nats a token)")
    lines = {line.get_label(): line for axes in panels for line in axes.lines}
    look = {"loc": "outside upper center", "ncols": len(lines), "frameon": False}
    figure.legend(lines.values(), lines.keys(), **look)
    _show(figure, f"Training and held-out loss by epoch: {', '.join(histories)}")


def plot_stacked(bars: Mapping[str, Mapping[str, float]], y: str) -> None:
    """Plot bars of parts that add up, with the sum above each.

    First used in lesson 04, section 4.

    Args:
        bars: name of a bar → part → height. All bars have the same parts.
        y: name of the vertical axis.

    Raises:
        ValueError: if there is nothing to plot, or a bar has other parts.
    """
    if not bars or not all(bars.values()):
        raise ValueError("There are no bars to plot: give each at least one part.")
    parts = list(next(iter(bars.values())))
    for name, heights in bars.items():
        if list(heights) != parts:
            raise ValueError(
                f"The bar {name!r} has the parts {list(heights)}; the first one has "
                f"{parts}: give all bars the same."
            )
    figure, axes = _figure()
    bottom = [0.0] * len(bars)
    for number, part in enumerate(parts):
        heights = [one[part] for one in bars.values()]
        colour = SERIES[number % len(SERIES)]
        drawn = axes.bar(
            range(len(bars)), heights, 0.6, bottom=bottom, color=colour, label=part
        )
        bottom = [below + one for below, one in zip(bottom, heights, strict=True)]
    axes.bar_label(drawn, labels=[f"{total:,.0f}" for total in bottom], fontsize=9)
    room = max(8, int(64 / len(bars)))
    axes.set_xticks(range(len(bars)), [textwrap.fill(name, room) for name in bars])
    axes.set_ylabel(y)
    axes.margins(y=0.1)
    figure.legend(loc="outside upper center", ncols=len(parts), frameon=False)
    _show(figure, f"{y} of {', '.join(bars)}, by part: {', '.join(parts)}")


def plot_paths(
    paths: Mapping[str, Sequence[tuple[float, float]]],
    x: str,
    y: str,
    logarithmic: str = "xy",
    my_guess: Guess = ...,
) -> None:
    """Plot lines through points, one line a name.

    First used in experiment 04_methods_compared, section 1.

    Args:
        paths: name → points (x, y), in the order in which the line visits them.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        logarithmic: which axes are, "x", "y", both or "".
        my_guess: the reader's height, or x → height.

    Raises:
        ValueError: if there is nothing to plot.
    """
    if not paths or not all(paths.values()):
        raise ValueError("There are no points to plot: give each line at least one.")
    figure, axes = _figure()
    markers = "os^Dvp*"
    for number, (name, points) in enumerate(paths.items()):
        look = {"marker": markers[number % len(markers)], "markersize": 5}
        look["color"] = (*SERIES, GREY)[number % (len(SERIES) + 1)]
        axes.plot(*zip(*points, strict=True), label=name, **look)
    axes.set(xlabel=x, ylabel=y)
    for axis in logarithmic:
        getattr(axes, f"set_{axis}scale")("log")
        scale = getattr(axes, f"{axis}axis")
        scale.set_major_formatter(lambda value, _: f"{value:g}")
        low, high = scale.get_view_interval()
        # Side by side, the labels of more than some two decades would overlap.
        fits = axis == "y" or high < 300 * low
        scale.set_minor_formatter(
            lambda value, _, fits=fits: _if_two_or_five(value) if fits else ""
        )
    drawn = _draw_guess(axes, my_guess)
    columns = min(len(paths) + drawn, 3)
    figure.legend(loc="outside upper center", ncols=columns, frameon=False)
    _show(figure, f"{y} against {x}, for: {', '.join(paths)}")


def _if_two_or_five(value: float) -> str:
    """Return a number that begins with 2 or 5 as text, another one as nothing."""
    return f"{value:g}" if f"{value:.0e}"[0] in "25" else ""


# --- 05: evaluation ---


def plot_differences(differences: Mapping[str, Difference], x: str) -> None:
    """Plot differences with their 95% intervals, a line each, and a line at zero.

    First used in lesson 05, section 4.

    Args:
        differences: what was compared → difference.
        x: name of the axis.
    """
    if not differences:
        raise ValueError("There are no differences to plot: give at least one.")
    figure, axes = _figure()
    places = list(range(len(differences)))
    for place, gain in zip(places, differences.values(), strict=True):
        unclear = gain.low <= 0 <= gain.high
        colour = GREY if unclear else BLUE if gain.low > 0 else ORANGE
        axes.plot([gain.low, gain.high], [place, place], color=colour, linewidth=2)
        axes.plot(gain.value, place, "o", color=colour)
    axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
    axes.set_yticks(places, list(differences))
    axes.set_ylim(len(differences) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", alpha=0.25)
    axes.set(xlabel=x)
    _show(figure, f"{x}, with 95% intervals, for: {', '.join(differences)}")


# --- experiment 01: inside attention ---


def plot_attention(weights: Any, tokens: Sequence[str]) -> None:
    """Plot where each token of a text looks: rows look, columns are looked at.

    First used in experiment 01_inside_attention, section 1.

    Args:
        weights: one head's attention, of shape (tokens, tokens).
        tokens: their texts.

    Raises:
        ValueError: if there is not one row and one column for each token.
    """
    import numpy as np

    weights = np.asarray(weights)
    if weights.shape != (len(tokens), len(tokens)):
        raise ValueError(
            f"The weights have the shape {weights.shape}, for {len(tokens)} tokens: "
            "give those of one head, a row and a column for each token."
        )
    figure, axes = _figure()
    figure.set_size_inches(5.6, 4.6)
    picture = axes.imshow(weights, cmap="Blues", vmin=0, vmax=1)
    axes.grid(visible=False)
    shown = [token.replace("\n", "⏎") for token in tokens]
    axes.set_xticks(range(len(tokens)), shown, rotation=90)
    axes.set_yticks(range(len(tokens)), shown)
    axes.set(xlabel="token looked at", ylabel="token that looks")
    figure.colorbar(picture, ax=axes, label="share of attention")
    _show(figure, "Attention of one head, token by token, as a heat map")


def plot_heads(panels: Mapping[str, Any], y: str) -> None:
    """Plot a score of every head of a model, by layer, a panel for each model.

    First used in experiment 01_inside_attention, section 2.

    Args:
        panels: title → scores between 0 and 1, of shape (layers, heads).
        y: name of the vertical axis.

    Raises:
        ValueError: if there is nothing to plot.
    """
    import numpy as np

    if not panels:
        raise ValueError("There are no scores to plot: give at least one panel.")
    figure, _ = _figure(columns=len(panels))
    figure.set_size_inches(1 + 3.4 * len(panels), 3.2)
    for axes, (title, scores) in zip(figure.axes, panels.items(), strict=True):
        scores = np.asarray(scores)
        layers = np.arange(len(scores)).repeat(scores.shape[1])
        axes.plot(layers, scores.flatten(), "o", color=BLUE, alpha=0.5, mec="none")
        axes.axhline(0.5, color=GREY, linestyle="--", linewidth=1)
        axes.set(title=f"{title} ({scores.size} heads)", xlabel="layer")
        axes.set(ylim=(-0.03, 1.03))
        axes.margins(x=0.1)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.axes[0].set_ylabel(y)
    _show(figure, f"{y} of every head, by layer, for: {', '.join(panels)}")


def plot_outcomes(
    outcomes: Mapping[str, Mapping[str, float]], x: str, shares: bool = True
) -> None:
    """Plot how a whole is shared out, one horizontal bar a condition.

    First used in experiment 01_inside_attention, section 3.

    Args:
        outcomes: condition → outcome → its share; the shares of a bar add up to 1. All
            conditions have the same outcomes.
        x: name of the horizontal axis.
        shares: whether each part shows its percentage.

    Raises:
        ValueError: if there is nothing to plot, or a condition has other outcomes.
    """
    if not outcomes or not all(outcomes.values()):
        raise ValueError("There are no outcomes to plot: give each bar at least one.")
    names = list(next(iter(outcomes.values())))
    if other := [key for key, parts in outcomes.items() if list(parts) != names]:
        raise ValueError(
            f"The bar {other[0]!r} has the parts {list(outcomes[other[0]])}; the first "
            f"one has {names}: give all bars the same."
        )
    figure, axes = _figure()
    figure.set_size_inches(7.4, 1.2 + (0.46 if shares else 0.22) * len(outcomes))
    left = [0.0] * len(outcomes)
    for number, name in enumerate(names):
        parts = [outcome[name] for outcome in outcomes.values()]
        colour = GREY if number and number + 1 == len(names) else SERIES[number]
        drawn = axes.barh(list(outcomes), parts, left=left, color=colour, label=name)
        if shares:
            labels = [f"{part:.0%}" if part >= 0.05 else "" for part in parts]
            style = {"label_type": "center", "color": "white", "fontsize": 9}
            axes.bar_label(drawn, labels=labels, **style)
        left = [start + part for start, part in zip(left, parts, strict=True)]
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set(xlabel=x, xlim=(0, 1))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if not shares:
        axes.tick_params(axis="y", labelsize=8)
    figure.legend(loc="outside upper center", ncols=len(names), frameon=False)
    plotted = [part for parts in outcomes.values() for part in parts.values() if part]
    bars = f"for: {', '.join(outcomes)}" if shares else f"in {len(outcomes)} bars"
    description = f"{x}, shared out among {', '.join(names)}, {bars}"
    _show(figure, description, plotted if shares else ())


# --- 06: deployment ---


def plot_timings(timings: Mapping[str, Any]) -> None:
    """Plot the median, the slow end and answers a second of each way of asking.

    First used in lesson 06, section 10.

    Args:
        timings: name → `utils.deployment.serving.Timing`.
    """
    if not timings:
        raise ValueError("There are no timings to plot: give at least one.")
    figure, (left, right) = _figure(columns=2)
    places = range(len(timings))
    for shift, name, colour in ((-0.2, "p50", BLUE), (0.2, "p95", ORANGE)):
        heights = [getattr(timing, name) for timing in timings.values()]
        left.bar([p + shift for p in places], heights, 0.4, color=colour, label=name)
    left.set_ylabel("seconds until the answer")
    left.legend(frameon=False)
    left.margins(y=0.35)  # room for the legend above the bars
    rates = [timing.per_second for timing in timings.values()]
    bars = right.bar(list(places), rates, 0.5, color=GREY)
    right.bar_label(
        bars, labels=[f"{rate:.{0 if rate >= 10 else 1}f}" for rate in rates]
    )
    right.set_ylabel("answers a second")
    for axes in (left, right):
        axes.set_xticks(
            list(places), [textwrap.fill(name, LABEL_WIDTH) for name in timings]
        )
    named = ", ".join(timings)
    _show(figure, f"Latency (p50 and p95) and throughput: {named}")


def plot_lines(
    lines: Mapping[str, Mapping[float, float]],
    x: str,
    y: str,
    levels: Mapping[str, float] | None = None,
    steps: bool = False,
    logarithmic: bool = False,
) -> None:
    """Plot values against a number, each series as a line, with levels to compare.

    First used in lesson 07, section 8.

    Args:
        lines: name of a series → x → y.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        levels: name → a value that is drawn as a dashed line over the whole width.
        steps: whether a value holds until the next one.
        logarithmic: whether both axes are; then each tenfold is as wide as the other.

    Raises:
        ValueError: if there is nothing to plot.
    """
    if not lines or not all(lines.values()):
        raise ValueError("There are no lines to plot: give each series a value.")
    figure, axes = _figure()
    for number, (name, line) in enumerate(lines.items()):
        axes.plot(
            list(line),
            list(line.values()),
            color=SERIES[number % len(SERIES)],
            drawstyle="steps-post" if steps else "default",
            label=name,
        )
    for name, level in (levels or {}).items():
        axes.axhline(level, color=GREY, linestyle="--", label=name)
    if logarithmic:
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel=x, ylabel=y)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    compared = f", compared with {', '.join(levels)}" if levels else ""
    _show(figure, f"{y} against {x}, as lines, for: {', '.join(lines)}{compared}")


# --- boxes and arrows ---


def plot_parts(nodes: Sequence[Any], edges: Sequence[Any], skipped: str = "") -> None:
    """Draw what uses what: from the first node to the right, one step a column.

    First used in lesson 07, section 1.

    Args:
        nodes: with `id`, `name` and `detail`, such as `graph.Node`.
        edges: with `source`, `target` and `label`; the labels of long ones are left
            out.
        skipped: ids of nodes that are left out, separated by blanks.
    """
    nodes = [node for node in nodes if node.id not in skipped.split()]
    columns = _columns_of(nodes, edges)
    rows = [
        [node.id for node in nodes if columns[node.id] == column]
        for column in range(max(columns.values()) + 1)
    ]
    for before, row in zip(rows, rows[1:], strict=False):
        row.sort(key=lambda name: _row_of_sources(name, before, edges))
    tallest = max(map(len, rows))
    place = {
        name: (2.7 * column, (tallest / len(names)) * (row + 0.5))
        for column, names in enumerate(rows)
        for row, name in enumerate(names)
    }
    figure, axes = _figure()
    figure.set_size_inches(9.6, 0.2 + 0.85 * tallest)
    axes.set_axis_off()
    for edge in edges:
        if edge.source in place and edge.target in place:
            _draw_arrow(axes, place[edge.source], place[edge.target], edge.label)
    for node in nodes:
        x, y = place[node.id]
        lines = textwrap.wrap(node.name, 21), textwrap.wrap(node.detail, 21)
        axes.text(
            *(x, y, "\n".join([*lines[0], *[""] * len(lines[1])])),
            **{"ha": "center", "va": "center", "fontsize": 7.5, "weight": "bold"},
        )
        axes.text(
            *(x, y, "\n".join([*[""] * len(lines[0]), *lines[1]])),
            **{"ha": "center", "va": "center", "fontsize": 7.5},
        )
        low = 0.06 + 0.095 * (len(lines[0]) + len(lines[1]))
        axes.add_patch(_box(x, y, low))
    axes.set(xlim=(-1.1, 2.7 * len(rows) - 1.6), ylim=(tallest, 0))
    ties = "; ".join(f"{e.source} to {e.target}" for e in edges)
    names = ", ".join(node.name for node in nodes)
    _show(figure, f"Boxes: {names}. Arrows: {ties}")


def _columns_of(nodes: Sequence[Any], edges: Sequence[Any]) -> dict[str, int]:
    """Return each node's steps from the first; of what leads into one, its own."""
    columns = {nodes[0].id: 0}
    waiting = [nodes[0].id]
    for name in waiting:
        for edge in edges:
            if edge.source == name and edge.target not in columns:
                columns[edge.target] = columns[name] + 1
                waiting.append(edge.target)
    for edge in edges:
        if edge.source not in columns:
            columns[edge.source] = max(columns.get(edge.target, 1) - 1, 0)
    return {node.id: columns.get(node.id, 0) for node in nodes}


def _row_of_sources(name: str, before: Sequence[str], edges: Sequence[Any]) -> float:
    """Return the mean row of what leads to a node, so that arrows seldom cross."""
    found = [
        before.index(edge.source)
        for edge in edges
        if edge.target == name and edge.source in before
    ]
    return sum(found) / len(found) if found else len(before)


def _box(x: float, y: float, low: float) -> Any:
    from matplotlib.patches import FancyBboxPatch

    return FancyBboxPatch(
        *((x - 0.9, y - low), 1.8, 2 * low),
        **{"boxstyle": "round,pad=0.06", "facecolor": "white"},
        **{"edgecolor": BLUE, "zorder": 1.5, "linewidth": 1.2},
    )


def _draw_arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], label: str
) -> None:
    """Draw an arrow from box to box, with its label where there is room for it."""
    right = end[0] > start[0]
    beginning = (start[0] + (0.97 if right else 0), start[1])
    ending = (end[0] - (0.97 if right else 0), end[1])
    if not right:  # in one column: from below or above
        down = 0.32 if end[1] > start[1] else -0.32
        beginning, ending = (start[0], start[1] + down), (end[0], end[1] - down)
    axes.annotate(
        *("", ending, beginning),
        arrowprops={"arrowstyle": "->", "color": GREY, "shrinkA": 0, "shrinkB": 0},
    )
    if label and len(label) <= 24 and right:
        flat = abs(beginning[1] - ending[1]) < 0.1  # then above the arrow
        height = (beginning[1] + ending[1]) / 2 - (0.14 if flat else 0)
        middle = (beginning[0] + ending[0]) / 2, height
        axes.text(
            *(*middle, "\n".join(textwrap.wrap(label, 10))),
            **{"ha": "center", "va": "center", "fontsize": 6.5, "color": INK},
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )


# --- all plots ---


def _figure(columns: int = 1) -> tuple[Any, Any]:
    # Without pyplot: no global state, and nothing is drawn twice.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(ncols=columns, squeeze=False)[0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    return figure, panels[0] if columns == 1 else panels


def _show(figure: Any, description: str, shares: Sequence[float] = ()) -> None:
    """Display a figure as PNG; `shares` are the proportions that it plots.

    They go into the metadata of the output, where a test sees how many of a lesson's
    plotted proportions lie near 0 or 100%: what does is better said in a sentence.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", facecolor="white")
    width = int(figure.get_figwidth() * 96)
    metadata = {PLOTTED_SHARES: [round(float(share), 3) for share in shares]}
    display(
        Image(
            picture.getvalue(),
            width=width,
            alt=description,
            metadata=metadata if len(shares) else None,
        )
    )
