"""Tables and figures: what they say, for readers of text as well."""

from __future__ import annotations

import html
import re
from types import SimpleNamespace

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from support.tiny_models import tiny_tokenizer
from utils import display, helpers
from utils.deployment.serving import Timing
from utils.display import (
    guess,
    guess_line,
    in_md,
    plot_bars,
    plot_chances,
    plot_curves,
    plot_differences,
    plot_lengths,
    plot_lines,
    plot_loss_panels,
    plot_parts,
    plot_paths,
    plot_proportions,
    plot_stacked,
    plot_timings,
    plot_words,
    score_table,
    show_source,
    show_tokens,
    with_interval,
)
from utils.evaluation.scores import paired_difference, proportion
from utils.helpers import DataCollatorForCompletionOnlyLM, add_text, preprocess_batch


@pytest.fixture
def shown(monkeypatch):
    """What a notebook would display."""
    things = []
    monkeypatch.setattr(display, "display", things.append)
    return things


@pytest.fixture
def row():
    text = add_text({"instruction": "What is <b>?", "response": "It is a tag."})
    columns = {key: [text[key]] for key in ("prompt", "completion")}
    return {
        key: value[0]
        for key, value in preprocess_batch(columns, tiny_tokenizer(), None).items()
    }


def is_png(picture):
    return picture.data.startswith(b"\x89PNG") and len(picture.data) > 5_000


def test_an_answer_is_quoted_as_written() -> None:
    quoted = in_md("# No *heading*\n<script>").data
    assert quoted == "> \\# No \\*heading\\*  \n> &lt;script&gt;  "


def test_an_answer_that_is_no_text_is_an_error() -> None:
    with pytest.raises(TypeError, match="found list"):
        in_md(["answer"])


def test_source_of_a_function_and_of_a_file(shown, tmp_path) -> None:
    file = tmp_path / "serving.properties"
    file.write_text("engine=Python\n```\n", encoding="utf-8")
    show_source(helpers.add_text, file)
    assert shown[0].data.startswith("```python\ndef add_text(")
    assert shown[1].data == "````text\nengine=Python\n```\n````"


def test_source_of_a_method_begins_at_the_margin(shown) -> None:
    show_source(DataCollatorForCompletionOnlyLM._pad)
    lines = shown[0].data.splitlines()
    assert lines[1].startswith("def _pad(self")
    assert lines[2].startswith("    side = ")


def test_source_of_a_missing_file_is_an_error(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        show_source(tmp_path / "none.py")


def text_of(markup, style):
    spans = re.findall(r'<span style="([^"]*)" title="[^"]*">(.*?)</span>', markup)
    text = "".join(content for found, content in spans if found == style)
    return html.unescape(text.replace("⏎<br>", "\n"))


def test_tokens_are_coloured_by_what_the_loss_sees(row) -> None:
    markup = show_tokens(row["input_ids"], row["labels"], tiny_tokenizer()).data
    assert text_of(markup, display.LEARNED) == "It is a tag.\n\n### End"
    assert text_of(markup, display.MASKED).endswith("What is <b>?\n\n### Response:\n")
    assert "<b>" not in markup
    learned = sum(label != helpers.IGNORED for label in row["labels"])
    assert f"{learned} learned" in markup


def test_padding_is_shown_as_such_and_outputs_repeat(row) -> None:
    tokenizer = tiny_tokenizer()
    collator = DataCollatorForCompletionOnlyLM(tokenizer, pad_to_multiple_of=64)
    batch = collator([row])
    arguments = [batch[key][0] for key in ("input_ids", "labels")]
    padded = show_tokens(*arguments, tokenizer, batch["attention_mask"][0]).data
    amount = batch["input_ids"].shape[1] - len(row["input_ids"])
    assert text_of(padded, display.PADDING) == tokenizer.pad_token * amount
    assert f"{amount} padding" in padded
    again = show_tokens(*arguments, tokenizer, batch["attention_mask"][0]).data
    assert padded == again


def test_ids_and_labels_of_different_rows_are_an_error(row) -> None:
    with pytest.raises(ValueError, match="3 ids, .* different rows"):
        show_tokens([1, 2, 3], row["labels"], tiny_tokenizer())


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be displayed."""
    figures = []
    monkeypatch.setattr(display, "_show", lambda figure, *_: figures.append(figure))
    return figures


def test_chances_are_plotted(shown) -> None:
    plot_chances({"as it is": {"' the'": 0.5, "' a'": 0.3, "the rest": 0.2}})
    assert is_png(shown[0])


def test_chances_are_coloured_and_their_names_shown_once(drawn) -> None:
    bars = {"' the'": 0.5, "' a'": 0.3, "the rest": 0.2}
    plot_chances({"one": bars, "two": bars}, marked=["' a'", "' an'"])
    colours = [[bar.get_facecolor() for bar in axes.patches] for axes in drawn[0].axes]
    hues = {
        name: to_rgba(getattr(display, name)) for name in ("BLUE", "ORANGE", "GREY")
    }
    assert colours[0] == [hues["BLUE"], hues["ORANGE"], hues["GREY"]]
    assert colours[1] == [hues["BLUE"], hues["BLUE"], hues["GREY"]]
    drawn[0].canvas.draw()
    labelled = [axes.yaxis.get_tick_params()["labelleft"] for axes in drawn[0].axes]
    assert labelled == [True, False]


def test_chances_need_bars_and_a_mark_for_each_panel() -> None:
    with pytest.raises(ValueError, match="no probabilities"):
        plot_chances({"as it is": {}})
    with pytest.raises(ValueError, match="2 marked bars for 1 panels"):
        plot_chances({"as it is": {"a": 1.0}}, marked=["a", "b"])


def test_words_are_named_where_there_is_room(drawn) -> None:
    points = [[0, 0], [0.001, 0], [1, 1]]
    plot_words(
        {"here": points}, ["cow", "dog", "Spain"], ["animals"] * 2 + ["countries"]
    )
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.texts] == [" Spain", " dog"]
    assert [len(line.get_xdata()) for line in axes.lines] == [2, 1]


def test_words_without_a_group_or_a_point_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 words and 1 groups"):
        plot_words({"here": [[0, 0], [1, 1]]}, ["cow", "dog"], ["animals"])
    with pytest.raises(ValueError, match=r"shape \(1, 2\), for 2 words"):
        plot_words({"here": [[0, 0]]}, ["cow", "dog"], ["animals", "animals"])


def test_losses_of_several_runs_stand_side_by_side(shown, monkeypatch) -> None:
    titles = []
    monkeypatch.setattr(Axes, "set_title", lambda _, title: titles.append(title))
    high = [{"loss": 4.0, "epoch": 1}, {"eval_loss": 5.0, "epoch": 1}]
    plot_loss_panels({"one": high, "other": [{"loss": 0.5, "epoch": 0.5}]})
    assert is_png(shown[0])
    assert titles == ["one", "other"]
    assert shown[0].alt == "Training and held-out loss by epoch: one, other"


def test_losses_stand_at_their_epoch(drawn) -> None:
    log = [{"loss": 4.0, "epoch": 1}, {"eval_loss": 5.0, "epoch": 1}, {"epoch": 2}]
    again = [*log, {"eval_reworded_loss": 3.0, "epoch": 1}]
    plot_loss_panels({"one": [*log, {"loss": 2.0, "epoch": 2}], "other": again})
    other = "trained facts, reworded"
    found = [
        {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        for axes in drawn[0].axes
    ]
    assert found == [
        {"training": [[1, 4], [2, 2]], "held out": [[1, 5]]},
        {"training": [[1, 4]], "held out": [[1, 5]], other: [[1, 3]]},
    ]
    (legend,) = drawn[0].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["training", "held out", other]
    assert all(axes.get_ylim()[0] == 0 for axes in drawn[0].axes)


@pytest.mark.parametrize("most", [0.02, 1.0])
def test_labels_of_a_logarithmic_axis_do_not_overlap(most, drawn) -> None:
    plot_paths({"LoRA": [(1e-4, 2.0), (most, 0.2)]}, "rate", "loss")
    figure = drawn[0]
    figure.canvas.draw()
    axis = figure.axes[0].xaxis
    labels = [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)]
    boxes = [one.get_window_extent() for one in labels if one.get_text()]
    low, high = figure.axes[0].get_window_extent().intervalx
    seen = sorted((b.x0, b.x1) for b in boxes if low <= (b.x0 + b.x1) / 2 <= high)
    assert len(seen) >= 3
    assert all(a[1] < b[0] for a, b in zip(seen, seen[1:], strict=False))


def test_parts_are_stacked_and_their_sum_stands_on_top(shown, monkeypatch) -> None:
    told = []
    monkeypatch.setattr(Axes, "bar_label", lambda *_, labels, **__: told.append(labels))
    bars = {"all": {"base": 538, "Adam": 1076}, "LoRA": {"base": 538, "Adam": 39.4}}
    plot_stacked(bars, y="MB")
    assert is_png(shown[0])
    assert told == [["1,614", "577"]]


def test_bars_to_stack_must_have_the_same_parts() -> None:
    with pytest.raises(ValueError, match="no bars to plot"):
        plot_stacked({}, y="MB")
    with pytest.raises(ValueError, match="The bar 'b' has the parts"):
        plot_stacked({"a": {"x": 1}, "b": {"y": 1}}, y="MB")


def test_lengths_are_plotted_also_when_a_part_is_empty(shown) -> None:
    plot_lengths({"train": [20, 30, 31], "validation": []}, limit=256)
    assert is_png(shown[0])
    assert "256" in shown[0].alt


def test_lines_are_drawn_with_the_levels_to_compare(drawn) -> None:
    lines = {"slow": {1: 4.0, 10: 0.4}, "fast": {1: 2.0, 10: 0.2}}
    plot_lines(lines, x="load", y="cost", levels={"API": 0.6}, logarithmic=True)
    axes = drawn[0].axes[0]
    assert [line.get_label() for line in axes.lines] == ["slow", "fast", "API"]
    assert list(axes.lines[1].get_ydata()) == [2.0, 0.2]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    plot_lines({"machines": {0: 1, 1: 2}}, x="hour", y="machines", steps=True)
    assert drawn[1].axes[0].lines[0].get_drawstyle() == "steps-post"
    with pytest.raises(ValueError, match="no lines to plot"):
        plot_lines({"machines": {}}, x="hour", y="machines")


def test_lines_are_described(shown) -> None:
    plot_lines({"slow": {1: 4.0, 10: 0.4}}, "load", "cost", levels={"API": 0.6})
    assert is_png(shown[0])
    assert shown[0].alt == "cost against load, as lines, for: slow, compared with API"


def test_parts_are_drawn_in_the_columns_of_their_steps(drawn) -> None:
    nodes = [
        SimpleNamespace(id=name, name=name.title(), detail="for tests")
        for name in ("browser", "api", "plan", "store", "left")
    ]
    ties = [("browser", "api", "HTTPS"), ("plan", "store", ""), ("api", "store", "")]
    edges = [SimpleNamespace(source=a, target=b, label=c) for a, b, c in ties]
    plot_parts(nodes, edges, skipped="left")
    axes = drawn[0].axes[0]
    places = {
        text.get_text().strip(): text.get_position()[0]
        for text in axes.texts
        if text.get_text().strip() in ("Browser", "Api", "Plan", "Store")
    }
    assert places["Browser"] < places["Plan"] == places["Api"] < places["Store"]
    assert all(text.get_text().strip() != "Left" for text in axes.texts)


def test_parts_are_described(shown) -> None:
    node = SimpleNamespace(id="api", name="The API", detail="")
    plot_parts([node], [])
    assert shown[0].alt.startswith("Boxes: The API.")


@pytest.mark.parametrize("keys", [(0, 1, 3), ("base", "tuned", "shuffled")])
def test_proportions_are_plotted(shown, keys) -> None:
    scores = {
        key: proportion([True] * n + [False] * 4) for n, key in enumerate(keys, start=1)
    }
    plot_proportions(scores, x="examples", y="right answers", guess=0.1)
    assert is_png(shown[0])
    assert shown[0].alt == "right answers against examples, with 95% intervals"


def test_no_proportions_are_an_error() -> None:
    with pytest.raises(ValueError, match="no scores"):
        plot_proportions({}, x="examples", y="right answers")


@pytest.mark.parametrize("keys", [(1, 2, 4), ("greedy", "sampled", "beams")])
def test_curves_are_plotted(shown, keys) -> None:
    few = {key: proportion([True, False, False]) for key in keys}
    many = {key: proportion([True, True, True]) for key in keys}
    more = {key: paired_difference([True], [False]) for key in keys[1:]}
    curves = {"at once": few, "worked": many}
    plot_curves(curves, x="steps", y="right answers")
    plot_curves(curves, x="steps", y="right answers", difference=more)
    assert is_png(shown[0])
    assert is_png(shown[1])
    assert shown[0].alt.endswith("with 95% intervals, for: at once, worked")


def test_no_interval_of_a_curve_hides_another(shown, monkeypatch) -> None:
    places = []
    bars = Axes.errorbar

    def errorbar(axes: Axes, x: list[float], *given, **how):
        places.append(x)
        return bars(axes, x, *given, **how)

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    scores = {key: proportion([True, False]) for key in (1, 2, 4)}
    plot_curves({"one": scores, "two": scores}, x="steps", y="right answers")
    assert all(a < b for a, b in zip(*places, strict=True))


@pytest.mark.parametrize(
    ("heights", "labels"),
    [
        ((0.2, 9.34), ["0.20", "9.34"]),
        ((0.64, 11.02), ["0.6", "11.0"]),
        ((20, 30.4), ["20", "30"]),
    ],
)
def test_a_bar_shows_as_many_digits_as_its_series_needs(
    shown, monkeypatch, heights, labels
) -> None:
    drawn = []
    monkeypatch.setattr(
        Axes, "bar_label", lambda *_, labels, **__: drawn.extend(labels)
    )
    plot_bars({"one": dict(enumerate(heights))}, x="steps", y="tokens")
    assert drawn == labels


def test_curves_that_vary_different_things_are_an_error() -> None:
    score = proportion([True])
    with pytest.raises(ValueError, match=r"'worked' has scores for \[2\]"):
        plot_curves({"at once": {1: score}, "worked": {2: score}}, x="steps", y="right")
    with pytest.raises(ValueError, match="no scores"):
        plot_curves({"at once": {}}, x="steps", y="right")


def test_bars_are_plotted(shown) -> None:
    plot_bars({"none": {"moo": 0.2}, "three": {"moo": 0.9}}, x="token", y="probability")
    assert is_png(shown[0])
    assert shown[0].alt == "probability against token, as bars, for: none, three"


def test_bars_show_the_interval_of_an_estimate(shown, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(
        Axes, "bar_label", lambda *_, labels, **__: drawn.extend(labels)
    )
    lengths = {1: paired_difference([30, 34, 38, 42], [0] * 4), 2: 50}
    plot_bars({"worked": lengths}, x="steps", y="tokens")
    assert re.fullmatch(r"36\n3\d to [34]\d", drawn[0])
    assert drawn[1] == "50"
    assert is_png(shown[0])


def test_an_interval_is_text_and_a_difference_has_a_sign() -> None:
    assert with_interval(proportion([True] * 8 + [False] * 2)) == "80% (49% to 94%)"
    assert with_interval(paired_difference([1, 1], [0, 0])) == "+100% (+100% to +100%)"


def test_bars_of_different_groups_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"'three' has the groups \['oink'\]"):
        plot_bars({"none": {"moo": 1}, "three": {"oink": 1}}, x="token", y="share")
    with pytest.raises(ValueError, match="no bars"):
        plot_bars({}, x="token", y="share")


def test_timings(shown) -> None:
    timing = Timing((0.1, 0.2), 0.3, 2)
    plot_timings({"one by one": timing, "in a list": timing})
    assert is_png(shown[0])
    assert "one by one, in a list" in shown[0].alt
    with pytest.raises(ValueError, match="no timings"):
        plot_timings({})


# the reader's guess


@pytest.fixture
def axis() -> Axes:
    """An axis with a bar and a legend, as a cell draws it."""
    _, axes = display._figure()
    axes.bar([0, 1], [0.2, 0.5], label="measured")
    axes.legend()
    return axes


def legend_of(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("untouched", [..., [..., ...], {0: ...}])
def test_an_untouched_guess_draws_nothing(axis, untouched) -> None:
    guess(axis, untouched)
    assert not axis.lines
    assert legend_of(axis) == ["measured"]


@pytest.mark.parametrize(
    ("my_guess", "places", "heights"),
    [
        (0.3, [0, 1], [0.3, 0.3]),
        ([0.1, ...], [0], [0.1]),
        ({0: 0.1, 1: 0.4}, [0, 1], [0.1, 0.4]),
    ],
)
def test_a_guess_is_drawn_and_named(axis, my_guess, places, heights) -> None:
    guess(axis, my_guess, "mine")
    (line,) = axis.lines
    assert list(line.get_xdata()) == places
    assert list(line.get_ydata()) == heights
    assert legend_of(axis) == ["mine", "measured"]


@pytest.mark.parametrize("my_guess", ["a third", [0.1, "half"], {0: True}])
def test_a_guess_that_is_no_number_is_an_error(axis, my_guess) -> None:
    with pytest.raises(ValueError, match="my_guess holds .* write a number"):
        guess(axis, my_guess)


@pytest.mark.parametrize(
    ("my_guess", "measured", "form", "line"),
    [
        (0.3, 0.42, "{:.0%}", "**30%**. Measured: **42%**. Your guess was too low."),
        (50, 0.42, "{:.0%}", "**50%**. Measured: **42%**. Your guess was too high."),
        (0.421, 0.42, "{:.0%}", "**42%**. Measured: **42%**. You were right."),
        (3, 4, "{} ids", "**3 ids**. Measured: **4 ids**. Your guess was too low."),
        (" moo", " quack", "{!r}", "**' moo'**. Measured: **' quack'**."),
        ("moo", "moo", "{}", "**moo**. Measured: **moo**. You were right."),
    ],
)
def test_a_guess_is_compared_in_a_line(my_guess, measured, form, line) -> None:
    assert guess_line(my_guess, measured, form).data == f"Your guess: {line}"


def test_a_line_says_what_to_do_where_nobody_has_guessed() -> None:
    line = guess_line(..., 0.42, "{:.0%}").data
    assert line.startswith("Measured: **42%**. You have not guessed: write yours")
    with pytest.raises(ValueError, match="'a third': .* such as 0.3 for 30%"):
        guess_line("a third", 0.42, "{:.0%}")


def test_plots_draw_the_guess(drawn) -> None:
    scores = {name: proportion([True, False]) for name in ("base", "tuned")}
    plot_proportions(scores, x="model", y="right", guess=0.1, my_guess={"tuned": 80})
    plot_proportions(scores, x="model", y="right", my_guess=...)
    plot_curves({"one": scores, "two": scores}, x="model", y="right", my_guess=[0.1])
    plot_bars({"one": {1: 20, 2: 30}}, x="steps", y="tokens", my_guess={2: 25})
    assert legend_of(drawn[0].axes[0]) == ["guessing", "your guess"]
    line = drawn[0].axes[0].lines[-1]
    assert [*line.get_xdata(), *line.get_ydata()] == [1, 0.8]
    assert drawn[1].axes[0].get_legend() is None
    names = [text.get_text() for text in drawn[2].legends[0].get_texts()]
    assert sorted(names) == ["one", "two", "your guess"]
    assert list(drawn[3].axes[0].lines[-1].get_xdata()) == [1]
    with pytest.raises(ValueError, match=r"names \['best'\], but plotted are"):
        plot_proportions(scores, x="model", y="right", my_guess={"best": 0.5})


def test_plotted_shares_stand_in_the_metadata(shown) -> None:
    scores = {"base": proportion([False] * 4), "tuned": proportion([True, False])}
    plot_proportions(scores, x="model", y="right")
    plot_bars({"right": scores}, x="model", y="right")
    plot_bars({"tokens": {"base": 10}}, x="model", y="tokens")
    assert [picture.metadata for picture in shown] == [
        {display.PLOTTED_SHARES: [0.0, 0.5]},
        {display.PLOTTED_SHARES: [0.0, 0.5]},
        {},
    ]


# 05_evaluation


def test_differences_are_plotted(shown) -> None:
    gain = paired_difference([1, 1, 0, 1], [0, 1, 0, 0])
    plot_differences({"template": gain, "none": paired_difference([1], [1])}, x="gain")
    assert is_png(shown[0])
    assert shown[0].alt == "gain, with 95% intervals, for: template, none"
    with pytest.raises(ValueError, match="no differences"):
        plot_differences({}, x="gain")


def test_a_table_of_scores_shows_each_share_with_its_interval() -> None:
    table = score_table({"right": {"a": [True] * 8 + [False] * 2, "b": [False] * 10}})
    assert table.loc["a", "right"] == "80% (49% to 94%)"
    assert list(table.index) == ["a", "b"]
