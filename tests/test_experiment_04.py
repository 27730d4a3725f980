"""What experiment 04, methods compared, takes from `utils` and from `data`."""

from __future__ import annotations

import csv

import pytest

from utils.course import ROOT
from utils.display import plot_paths

PUBLISHED = ROOT / "data" / "peft_method_comparison.csv"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What the plots hand on to be shown."""
    shown: list[tuple] = []
    monkeypatch.setattr("utils.display._show", lambda *given: shown.append(given))
    return shown


def test_paths_are_lines_in_the_order_of_their_points(drawn: list[tuple]) -> None:
    paths = {"full": [(1.0, 2.0), (0.5, 4.0)], "LoRA": [(1.0, 3.0)]}
    plot_paths(paths, x="loss", y="forgotten", my_guess={1.0: 3.5})
    figure, description = drawn[0]
    assert description == "forgotten against loss, for: full, LoRA"
    axes = figure.axes[0]
    full, lora, guess = axes.lines
    assert list(full.get_xdata()) == [1.0, 0.5]
    assert full.get_color() != lora.get_color()
    assert list(guess.get_ydata()) == [3.5]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "full",
        "LoRA",
        "your guess",
    ]


def test_axes_are_logarithmic_as_asked(drawn: list[tuple]) -> None:
    plot_paths({"one": [(1.0, 0.5)]}, x="a", y="b", logarithmic="x")
    axes = drawn[0][0].axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")


@pytest.mark.parametrize("paths", [{}, {"empty": []}])
def test_nothing_to_plot_is_said(paths) -> None:
    with pytest.raises(ValueError, match="no points to plot"):
        plot_paths(paths, x="a", y="b")


def test_the_published_rows_are_ten_runs_and_whole() -> None:
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["run"] for row in rows}) == len(rows) == 10
    for row in rows:
        assert 0 < float(row["accuracy"]) < 1
        assert float(row["forgetting"]) > 0
        assert int(row["trained"]) > 0
