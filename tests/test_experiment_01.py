"""What experiment 01, inside attention, takes from `utils`."""

from __future__ import annotations

import numpy
import pytest

from utils.display import plot_attention, plot_heads, plot_outcomes
from utils.tasks import RELATIONS, crossed_tasks, list_parts


def test_parts_of_a_list() -> None:
    tokens = ["cow", " -", " m", "oo", "\n", "du", "ck", " -"]
    parts = ["word", "dash", "answer", "answer", "newline", "query", "query", "dash"]
    assert list_parts(tokens) == parts
    assert list_parts(tokens[:5]) == parts[:5]
    assert list_parts(tokens[:1]) == ["query"]
    assert list_parts([]) == []


def test_crossed_tasks_have_four_answers_that_are_not_shown() -> None:
    pairs = crossed_tasks(40, seed=3)
    assert len(pairs) == 40
    assert pairs == crossed_tasks(40, seed=3)
    for first, second, answers in pairs:
        assert len(set(answers)) == 4
        assert (first.answer, second.answer) == (answers[0], answers[3])
        word = second.prompt.splitlines()[-1].removesuffix(" -")
        assert RELATIONS[first.kind][word] == answers[2]
        for prompt in (first.prompt, second.prompt):
            assert not set(answers) & set(prompt.split())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What the plots hand on to be shown."""
    shown: list[tuple] = []
    monkeypatch.setattr("utils.display._show", lambda *given: shown.append(given))
    return shown


def test_attention_is_plotted_with_its_scale(drawn) -> None:
    plot_attention(numpy.eye(3), ["cow", " -", "\n"])
    figure, description = drawn[0]
    axes, scale = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cow", " -", "⏎"]
    assert scale.get_ylabel() == "share of attention"
    assert "heat map" in description
    with pytest.raises(ValueError, match="for 2 tokens"):
        plot_attention(numpy.eye(3), ["cow", " -"])


def test_every_head_is_a_dot(drawn) -> None:
    plot_heads({"one": numpy.zeros((4, 6)), "two": numpy.ones((3, 9))}, y="score")
    dots = [axes.lines[0].get_xdata() for axes in drawn[0][0].axes]
    assert [len(places) for places in dots] == [24, 27]
    assert drawn[0][0].axes[1].get_title() == "two (27 heads)"
    with pytest.raises(ValueError, match="no scores"):
        plot_heads({}, y="score")


def test_outcomes_are_shared_out_and_noted(drawn) -> None:
    bars = {"whole": {"right": 1.0, "wrong": 0.0}, "part": {"right": 0.4, "wrong": 0.6}}
    plot_outcomes(bars, x="answers")
    figure, description, shares = drawn[0]
    assert shares == [1.0, 0.4, 0.6]
    assert "for: whole, part" in description
    assert [text.get_text() for text in figure.axes[0].texts] == [
        *("100%", "40%"),
        *("", "60%"),
    ]


def test_outcomes_without_labels_are_not_noted(drawn) -> None:
    plot_outcomes({"a": {"x": 0.5, "y": 0.5}}, x="attention", shares=False)
    assert drawn[0][2] == ()
    assert "in 1 bars" in drawn[0][1]


@pytest.mark.parametrize(
    ("bars", "message"),
    [({}, "no outcomes"), ({"a": {"x": 1}, "b": {"y": 1}}, "give all bars the same")],
)
def test_outcomes_that_do_not_fit_are_an_error(bars, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_outcomes(bars, x="answers")
