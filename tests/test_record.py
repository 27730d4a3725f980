"""utils.record: what a record holds, and that it goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest
import torch
from safetensors.torch import load_file

from support.tiny_models import tiny_chat_tokenizer, tiny_llama
from utils import record
from utils.course import FAQS_DATA, ROOT
from utils.evaluation.scores import Estimate
from utils.models import Answers, load_model, settings_for
from utils.record import RecordError, Road, cases, recorded
from utils.templates import TemplateError, load_template
from utils.training.adapters import load_adapter

WORDS = (
    "amber birch cedar delta ember fjord grove heron iris jade kelp lotus maple north "
    "ocean pearl quill river stone tulip umber vivid willow zinc"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four facts in trained and free wordings, half of them invented."""
    rows = []
    for number, word in enumerate(WORDS.split()):
        fact = f"kestrel/{word}" if number % 2 else f"public/{word}"
        asked = {
            "trained": [f"What is the code of {word}?", f"Which code has {word}?"],
            "free": [f"{word} code pls", f"i need the code for {word}, any idea"],
        }
        rows += [
            {
                "instruction": question,
                "response": f"The code of {word} is {100 + number}.",
                "topic": "codes",
                "fact": fact,
                "must_say": str(100 + number),
                "must_not_say": "",
                "wording": wording,
            }
            for wording, questions in asked.items()
            for question in questions
        ]
    file = tmp_path_factory.mktemp("data") / "codes.csv"
    pandas.DataFrame(rows).to_csv(file, index=False)
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an untrained model with a chat template."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    tokenizer = tiny_chat_tokenizer()
    made = tiny_llama(len(tokenizer))
    made.config.max_position_embeddings = 4096
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def road(data: Path, model: str, tmp_path: Path) -> Road:
    settings = replace(
        settings_for(model), max_length=1024, max_new_tokens=4, epochs=1, batch_size=8
    )
    return Road(settings, data, tmp_path, seeds=(0,), say=lambda line: None)


def test_the_main_road_is_measured_from_end_to_end(
    road: Road, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(record, "PASSES", (1, 2))
    monkeypatch.setattr(record, "CHOOSING_PASSES", (1,))
    monkeypatch.setattr(record, "FORMAT_PASSES", (1, 2))
    messages = record.json_format.load_messages()
    some = messages.groupby("part").head(12)
    monkeypatch.setattr(record.json_format, "load_messages", lambda: some)
    skills = tmp_path / "skills.csv"
    pandas.read_csv(record.SKILLS).groupby("skill").head(4).to_csv(skills, index=False)
    monkeypatch.setattr(record, "SKILLS", skills)
    found = record.run(road)
    assert list(found) == [
        "search",
        "untuned",
        "untuned_format",
        "open_book_0",
        "format_0",
        "closed_book_0",
        "choosing_0",
    ]
    figures = {name: stage["figures"] for name, stage in found.items()}
    for stage in figures.values():
        for name, one in stage.items():
            if name != "training":
                assert one["low"] <= one["value"] <= one["high"] and one["n"] > 0, name
    # The printed note is right exactly where the search finds the right one.
    printed = figures["untuned"]["right: the note found first, printed"]
    assert printed["groups"] == 6 and printed["n"] == 12
    # Nothing was learned in so little time, and nothing is right by chance.
    assert figures["open_book_0"]["open book, right: no notes"]["value"] == 0
    assert {"after 1 passes, closed book, right: free wordings"} <= set(
        figures["closed_book_0"]
    )
    assert figures["open_book_0"]["training"]["rows"] == len(road.parts["train"])
    assert (road.folder / "open_book_0" / "adapter_model.safetensors").is_file()


def test_the_validation_part_chooses_the_pass_whose_test_figure_counts(
    road: Road, monkeypatch
) -> None:
    rows = record.json_format.load_messages().to_dict("records")
    sizes = {part: sum(row["part"] == part for row in rows) for part in record.PARTS}
    # Exact answers after pass 1, 2 and 3; on the test part, others are best.
    exact = {"validation": (0.2, 0.5, 0.5), "test": (0.9, 0.6, 1.0)}
    answers = {row["instruction"]: row["response"] for row in rows}
    parts = {row["instruction"]: row["part"] for row in rows}
    measured: list[Answers] = []

    def ask(model, prompts, stop=None):
        asked = [next(m for m in answers if m in prompt) for prompt in prompts]
        part = parts[asked[0]]
        right = round(exact[part][len(measured) // 2] * sizes[part])
        texts = [answers[message] for message in asked[:right]]
        texts += ["Sure!"] * (len(prompts) - right)
        measured.append(Answers(texts, [True] * len(texts)))
        return measured[-1]

    def fine_tune(name, rows, seed, callbacks=(), num_train_epochs=None, **changes):
        assert {row["part"] for row in rows} == {"train"}
        assert changes["lr_scheduler_type"] == "linear"
        for epoch in range(1, num_train_epochs + 1):
            for one in callbacks:
                one.on_epoch_end(None, SimpleNamespace(epoch=float(epoch)), None)
        return None, {"loss": 0.0}

    monkeypatch.setattr(road, "ask", ask)
    monkeypatch.setattr(road, "fine_tune", fine_tune)
    found = record.format_stage(road, 0)
    assert len(measured) == 2 * len(record.FORMAT_PASSES)
    assert found["training"]["passes chosen"] == 2  # of equals the first
    assert found["format, exact"] == found["after 2 passes, format, test, exact"]
    assert found["format, exact"]["value"] == pytest.approx(0.6, abs=0.01)
    assert found["format, valid"]["n"] == sizes["test"]


def test_one_row_of_each_fact_is_asked_always_the_same() -> None:
    rows = [{"fact": f"f{i % 5}", "instruction": str(i)} for i in range(20)]
    drawn = record.one_of_each(rows)
    assert sorted(row["fact"] for row in drawn) == ["f0", "f1", "f2", "f3", "f4"]
    assert drawn == record.one_of_each(rows)
    assert {row["instruction"] for row in drawn} < {str(i) for i in range(20)}


def test_only_the_chosen_prompt_sees_the_test_messages(road: Road, monkeypatch) -> None:
    rows = record.json_format.load_messages().to_dict("records")
    texts = {
        part: [row["instruction"] for row in rows if row["part"] == part]
        for part in ("validation", "test")
    }
    right = {row["instruction"]: row["response"] for row in rows}
    asked: list[str] = []

    def ask(model, prompts, stop=None):
        asked.extend(prompts)
        given = []
        for prompt in prompts:
            message = max((m for m in right if m in prompt), key=prompt.rfind)
            # Only with twelve examples: for the others it is no JSON.
            many = sum(answer in prompt for answer in right.values()) >= 12
            given.append(right[message] if many else "Sure!")
        return Answers(given, [True] * len(given))

    monkeypatch.setattr(record, "load_model", lambda settings: None)
    monkeypatch.setattr(road, "ask", ask)
    found = record.untuned_format_stage(road)
    ends = [prompt[-600:] for prompt in asked]
    wanted = {"validation": len(record.json_format.candidates(rows)), "test": 1}
    for part, times in wanted.items():
        count = sum(any(text in end for text in texts[part]) for end in ends)
        assert count == times * record.FORMAT_ASKED[part], part
    assert found["format, exact"]["value"] == 1
    twelve = "four sentences and twelve examples, as turns"
    assert found[f"format, validation, exact: {twelve}"]["value"] == 1


def test_answers_to_shared_prompts_go_to_their_own_rows(
    road: Road, monkeypatch
) -> None:
    texts = [note.answer for note in road.notes]

    def ask(model, prompts, stop=None):
        assert len(set(prompts)) == len(prompts)
        said = [next((t for t in texts if t in prompt), "") for prompt in prompts]
        return Answers(said, [True] * len(said))

    monkeypatch.setattr(road, "ask", ask)
    found = record.open_book_figures(road, None)
    assert found["right: the right note"]["value"] == 1
    assert found["cut off: the right note"]["value"] == 0
    assert found["right: one note that does not answer"]["value"] == 0
    assert found["right: no notes"]["value"] == 0
    first = record.printed_note(road)[record.PRINTED]
    assert found["right: the note found first"] == first


@pytest.mark.parametrize("seed", [0, 1])
def test_later_seeds_are_asked_in_the_main_forms(road, seed, monkeypatch) -> None:
    forms = []
    nothing = lambda *given, **named: {}  # noqa: E731
    for name in ("save_adapter", "closed_book_figures", "general_figures"):
        monkeypatch.setattr(record, name, nothing)
    monkeypatch.setattr(road, "with_notes", nothing)
    monkeypatch.setattr(road, "fine_tune", lambda *given, **named: (None, {}))
    monkeypatch.setattr(
        record, "open_book_figures", lambda *given: forms.append(given[2]) or {}
    )
    record.open_book_stage(road, seed)
    assert forms == [record.MAIN_FORMS if seed else None]
    assert set(record.MAIN_FORMS) <= set(record.open_book_prompts(road, road.rows[:8]))


def test_training_rows_hold_no_note_on_a_fact_of_another_part(road: Road) -> None:
    rows = road.with_notes(road.parts["train"], seed=0)
    held_out = {row["response"] for row in road.parts["fact"]}
    held_out |= {row["response"] for row in road.parts["validation"]}
    shown = "\n".join(row["context"] for row in rows)
    assert held_out and not [answer for answer in held_out if answer in shown]


def test_long_notes_are_cut_and_a_long_answer_is_named(road, monkeypatch) -> None:
    class Reached(Exception):
        pass

    def stop_here(model, tokenizer, arguments, rows):
        raise Reached(rows)

    monkeypatch.setattr(record, "completion_trainer", stop_here)
    road.settings = replace(road.settings, max_length=200)
    row = {"instruction": "What is it?", "response": "A code.", "context": None}
    long = {**row, "context": "The code of amber is 100. " * 90}
    with pytest.raises(Reached) as reached:
        road.fine_tune("cut", [row, long], 0)
    for encoded in reached.value.args[0]:
        learned = [label for label in encoded["labels"] if label >= 0]
        assert road.tokenizer.decode(learned) == "A code.<|im_end|>"
        assert len(encoded["input_ids"]) <= 200
    for notes in (None, "A note."):
        bad = {**row, "response": "so " * 300, "context": notes}
        with pytest.raises(TemplateError, match="Row 1 of the batch.*max_length"):
            road.fine_tune("named", [row, bad], 0)


def test_what_was_measured_is_not_measured_again(road: Road, monkeypatch) -> None:
    first = record.run(road, ["search"])
    monkeypatch.setattr(record, "search_stage", lambda road: pytest.fail("again"))
    assert record.run(road, ["search"]) == first


def test_what_was_measured_with_other_settings_is_measured_again(road: Road) -> None:
    first = record.run(road, ["search"])
    said: list[str] = []
    road.settings, road.say = replace(road.settings, learning_rate=0.5), said.append
    assert record.run(road, ["search"])
    assert "search was measured with other data or settings" in said[0]
    again = json.loads((road.folder / "search.json").read_text("utf-8"))
    assert again["made with"] != first["search"]["made with"]


def test_a_stage_depends_on_its_own_files_only(road, monkeypatch, tmp_path) -> None:
    names = ("search", "open_book_0", "format_0", "untuned_format")
    before = {name: record.fingerprint(road, name) for name in names}
    other = tmp_path / "messages.csv"
    other.write_text("others", "utf-8")
    monkeypatch.setattr(record.json_format, "MESSAGES_DATA", other)
    changed = {n for n in names if record.fingerprint(road, n) != before[n]}
    assert changed == {"format_0", "untuned_format"}
    road.data = other
    changed = {n for n in names if record.fingerprint(road, n) != before[n]}
    assert changed == set(names)


def test_stages_that_are_not_wanted_stay_as_recorded(
    road: Road, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(record, "RECORDED", tmp_path / "recorded")
    made = record.fingerprint(road, "untuned")
    kept = {"made with": made, "figures": {}, "date": "1999-01-01"}
    stale = kept | {"made with": "other"}
    stages = {"untuned": kept, "closed_book_0": stale, "search": kept}
    record.write_json(tmp_path / "recorded" / "tiny.json", {"stages": stages})
    file = record.record(road, "tiny", "python -m utils.record tiny", ["search"])
    found = json.loads(file.read_text("utf-8"))["stages"]
    assert set(found) == {"search", "untuned"}
    assert found["untuned"] == kept and found["search"]["date"] != "1999-01-01"


def test_a_stage_that_nobody_knows_is_named(road: Road) -> None:
    with pytest.raises(RecordError, match="No stage begins with 'tuned'"):
        record.run(road, ["tuned"])


def test_a_file_without_free_wordings_cannot_be_recorded(road: Road) -> None:
    road.data = ROOT / "data" / "lab_questions.csv"
    with pytest.raises(RecordError, match="lab_questions.csv has no column 'wording'"):
        road.parts  # noqa: B018


def test_the_record_says_how_it_was_made(road: Road, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(record, "RECORDED", tmp_path / "recorded")
    file = record.record(road, "tiny", "python -m utils.record tiny", ["search"])
    found = json.loads(file.read_text("utf-8"))
    assert found["command"] == "python -m utils.record tiny --stages search"
    assert found["stages"]["search"]["peak memory, GB"] > 0.1
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert found["settings"]["lora_r"] == road.settings.lora_r
    assert set(found["stages"]) == {"search"}
    assert str(ROOT) not in file.read_text("utf-8")
    assert len(found["data"]) == 4


def test_only_a_recorded_adapter_is_shipped(road: Road, monkeypatch, tmp_path) -> None:
    target = tmp_path / "shipped"
    with pytest.raises(RecordError, match="ships no adapter for tiny, only for"):
        record.ship(road)
    monkeypatch.setattr(record, "SHIPPED", {"tiny": target})
    with pytest.raises(RecordError, match="--stages open_book_0` first"):
        record.ship(road)
    record.run(road, ["open_book"])
    assert record.ship(road) == target
    saved = load_file(road.folder / "open_book_0" / "adapter_model.safetensors")
    shipped = load_file(target / "adapter_model.safetensors")
    assert saved.keys() == shipped.keys()
    for name, weights in saved.items():
        assert torch.equal(shipped[name], weights.half())
    # It is an adapter of the course: it knows its base and its template.
    model = load_adapter(load_model(road.settings), target, road.template)
    assert load_template(target, road.tokenizer) == road.template
    assert road.ask(model, [road.template.prompt("Why?")])
    road.settings = replace(road.settings, learning_rate=0.5)
    with pytest.raises(RecordError, match="is not measured with this data"):
        record.ship(road)


def test_the_command_line_explains_a_wrong_model(capsys) -> None:
    assert record.main(["no such model"]) == 1
    assert "COURSE_MODEL" in capsys.readouterr().err


def test_the_command_that_is_kept_measures_all_stages_again(monkeypatch) -> None:
    kept = []
    monkeypatch.setattr(record, "record", lambda *given: kept.append(given[2]))
    start = "python -m utils.record lab"
    for given in (["--stages", "search"], ["--seeds", "1"], ["--name", "trial"]):
        assert record.main(["lab", *given]) == 0
    assert kept == [start, f"{start} --seeds 1", f"{start} --name trial"]


# --- the records that are committed ---

RECORDS = sorted(record.RECORDED.glob("*.json"))


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: file.stem)
def test_a_committed_record_belongs_to_the_data_at_hand(file: Path) -> None:
    found = json.loads(file.read_text("utf-8"))
    assert found["command"].startswith("python -m utils.record ")
    for name, digest in found["data"].items():
        assert record.digest(ROOT / name) == digest, f"{name} has changed: record anew"
    road = Road(settings_for(found["name"]), FAQS_DATA, ROOT)
    for name, stage in found["stages"].items():
        assert stage["date"] and stage["machine"] and stage["figures"]
        assert stage["made with"] == record.fingerprint(road, name)


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: file.stem)
def test_the_readme_shows_the_record(file: Path) -> None:
    found = json.loads(file.read_text("utf-8"))
    page = (ROOT / "README.md").read_text("utf-8")
    assert record.table(found) in page
    for stage in record.CURVES:
        assert record.curves(found, stage) in page


def test_lesson_05_states_what_is_recorded() -> None:
    lesson = (ROOT / "notebooks" / "05_evaluation.ipynb").read_text("utf-8")
    closed = "after 4 passes, closed book, right"
    trained, free = (
        record.recorded("closed_book_0", f"{closed}: {some} wordings")
        for some in ("trained", "free")
    )
    stated = (
        f"{trained.value:.0%} of the trained wordings, {free.value:.0%} of free ones"
    )
    assert stated in lesson
    refused = "after 1 passes, open book, refused: the right note"
    assert round(3 * record.recorded("choosing_0", refused).value) == 2
    assert "refused two thirds even with the right note" in lesson


def test_a_curve_has_a_column_for_each_number_of_passes() -> None:
    name = record.CURVES["closed_book_0"]["trained facts in free wordings"]
    other = record.CURVES["closed_book_0"]["trained facts in trained wordings"]
    numbers = {"value": 0.25, "low": 0.2, "high": 0.4, "n": 126}
    figures = {
        f"after {n} passes, {one}": numbers for n in (10, 1) for one in (name, other)
    }
    figures["training"] = {"seconds": 1}
    found = {"stages": {"closed_book_0": {"figures": figures}}}
    lines = record.curves(found, "closed_book_0").split("\n")
    assert lines[0] == "| asked | 1 pass | 10 passes |"
    assert lines[3].endswith("free wordings | 25% (20 to 40) | 25% (20 to 40) |")


def test_the_table_shows_the_mean_over_seeds_and_an_interval_of_one_run() -> None:
    name = "open book, right: the right note"
    one = {"value": 0.25, "low": 0.2, "high": 0.4, "n": 126}
    tuned = [{**one, "value": value} for value in (0.9, 1.0)]
    stages = {
        "untuned": {"figures": {name: one, record.PRINTED: one}},
        "open_book_0": {"figures": {name: tuned[0]}},
        "open_book_1": {"figures": {name: tuned[1]}},
    }
    lines = record.table({"stages": stages}).split("\n")
    assert lines[2].endswith("| 126 | 25% (20 to 40) | 95% (90 to 100) |")
    assert lines[4].endswith("printed | 126 | 25% (20 to 40) | |")


# --- reading a record ---


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a record of the name trial, with these stages."""

    def write(stages: dict) -> None:
        (tmp_path / "trial.json").write_text(json.dumps({"stages": stages}), "utf-8")

    monkeypatch.setattr(record, "RECORDED", tmp_path)
    return write


NUMBERS = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 40, "groups": 20}


def test_a_figure_is_read_with_its_interval_and_a_missing_one_is_none(keep) -> None:
    keep({"untuned": {"figures": {"right": NUMBERS}}})
    assert recorded("untuned", "right", "trial") == Estimate(0.5, 0.25, 0.75, 40)
    assert recorded("untuned", "wrong", "trial") is None
    assert recorded("format_0", "right", "trial") is None


def test_cases_are_those_of_each_system_that_was_recorded(keep) -> None:
    figures = {"figures": {"open book, right: no notes": NUMBERS}}
    keep({"open_book_1": figures, "open_book_0": figures, "search": {"figures": {}}})
    found = cases("trial")
    assert list(found) == ["tuned, seed 0", "tuned, seed 1"]
    assert found["tuned, seed 1"]["never trained, no note"].value == 0.5
    assert found["tuned, seed 0"]["never trained, the right note"] is None


@pytest.mark.parametrize("content", [None, "{"])
def test_a_record_that_cannot_be_read_says_what_to_do(
    content: str | None, keep, tmp_path: Path
) -> None:
    if content:
        (tmp_path / "trial.json").write_text(content, "utf-8")
    with pytest.raises(RecordError, match=r"python -m utils\.record trial"):
        recorded("untuned", "right", "trial")
