"""The capstone's ten checks: what passes, and the hint for each planted mistake.

The notebook itself runs with the handbook in test_notebooks.py; here it runs with the
other files, on the lab model.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import torch
from safetensors.torch import save_file

from support.lessons import claims_of, run_lessons
from utils.course import ROOT, run_config
from utils.dataset.checks import Finding, check
from utils.dataset.faqs import load_faqs
from utils.dataset.splits import split
from utils.deployment.findings import Report, error
from utils.evaluation.answers import groups_of
from utils.evaluation.scores import Difference, paired_difference
from utils.exercises.capstone import (
    STEPS,
    Capstone,
    ClassJudge,
    judge_of,
    suggested_prompts,
)
from utils.exercises.capstone_page import NOT_REACHED, page, write_page
from utils.exercises.lesson_09 import check_leaks, check_sentence

FOLDER = ROOT / "data" / "capstone"
HANDBOOK = FOLDER / "handbook.csv"
OWN = "own"  # a file that nobody prepared
FILES = [
    "messages.csv",
    pytest.param("support_de.csv", marks=pytest.mark.slow),
    pytest.param(OWN, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Arguments of each check that pass, as the notebook would give them."""
    folder = tmp_path_factory.mktemp("capstone")
    faqs = load_faqs(HANDBOOK)
    report, parts = check(faqs), split(faqs)
    tests, validation = parts["test"].to_list(), parts["validation"].to_list()[:8]
    adapter, archive = folder / "adapter", folder / "model.tar.gz"
    save_adapter_with(adapter, torch.ones(2, 2))
    archive.write_bytes(b"packed" * 1000)
    os.utime(archive, (2_000_000_000, 2_000_000_000))
    prompts = suggested_prompts(faqs)
    tried = {"as asked": [True] * 3 + [False] * 5, "short": [True] * 5 + [False] * 3}
    right = {
        "baseline": [n % 4 == 0 for n in range(len(tests))],
        "tuned": [n % 7 != 0 for n in range(len(tests))],
    }
    gain = paired_difference(right["tuned"], right["baseline"], groups=groups_of(tests))
    asked = [row["instruction"] for row in tests[:3]]
    expected = [row["response"] for row in tests[:3]]
    loaded = Report("model.tar.gz", {"model.py": 10, "serving.properties": 20})
    loaded.unchecked.append("GPU memory")
    return {
        "data_read": {"faqs": faqs, "report": report, "decisions": {}},
        "split_by_group": {"faqs": faqs, "parts": parts},
        "judge_examined": {
            "judge": judge_of(faqs, tests, parts["train"].to_list()),
            "rows": tests,
        },
        "baseline": {
            "prompts": prompts,
            "tried": tried,
            "chosen": "short",
            "validation": validation,
            "right": right["baseline"],
            "tests": tests,
        },
        "tuned": {
            "adapter": adapter,
            "held_out": [2.5, 0.5],
            "trained": parts["train"].to_list(),
            "tests": tests,
        },
        "decision": {"serve": "tuned", "gain": gain, "right": right, "tests": tests},
        "artifact": {"report": loaded, "archive": archive, "made_from": adapter},
        "endpoint": {
            "asked": asked,
            "served": expected,
            "expected": expected,
            "others": ["I do not know."] * 3,
        },
        "page": {
            "reply": web_reply(200, answer=expected[0]),
            "refused": web_reply(403),
        },
        "nothing_left": {"guard": a_guard(["endpoint", "model"], [])},
    }


def save_adapter_with(folder: Path, matrix: torch.Tensor) -> None:
    folder.mkdir()
    names = ("base.q_proj.lora_A.weight", "base.q_proj.lora_B.weight")
    tensors = dict(zip(names, (torch.ones(2, 2), matrix), strict=True))
    save_file(tensors, folder / "adapter_model.safetensors")


def web_reply(status: int, **body: str) -> SimpleNamespace:
    return SimpleNamespace(status_code=status, json=lambda: body)


def a_guard(kinds: list[str], left: list[str]) -> SimpleNamespace:
    """What a guard tells of a run; that it tells it truly, test_teardown.py holds."""
    return SimpleNamespace(
        run="1a2b3c4d",
        entries=[SimpleNamespace(kind=kind) for kind in kinds],
        remaining=lambda: left,
        bill=lambda: SimpleNamespace(total=0.0123),
    )


def new_road() -> Capstone:
    environ = {"COURSE_DATA": str(HANDBOOK)}
    return Capstone(run_config(environ, model="smollm2"))


def walked(good: Mapping[str, dict[str, Any]], steps: int = len(STEPS)) -> Capstone:
    road = new_road()
    for step in list(STEPS)[:steps]:
        verdict = getattr(road, step)(**good[step])
        assert verdict, verdict
    return road


def test_all_ten_pass_and_are_counted(good) -> None:
    assert len(STEPS) == 10
    road = walked(good)
    assert road.passed == 10
    assert repr(road).count("✓") == 10
    first = repr(road.verdicts["data_read"])
    assert first == "✓ 1 of 10 · The data report is read: 184 rows."


# --- planted mistakes -----------------------------------------------------------------


def with_finding(kind: str) -> Callable[[dict], dict]:
    def change(given: dict) -> dict:
        finding = Finding(kind, "There is something", (4,))
        return {"report": replace(given["report"], findings=[finding])}

    return change


def moved_rows(given: dict) -> dict:
    """A random split: a test row's sister trains."""
    parts = {name: part.to_list() for name, part in given["parts"].items()}
    parts["train"].append(parts["test"].pop())
    return {"parts": parts}


def one_group(given: dict) -> dict:
    parts = {name: part.to_list() for name, part in given["parts"].items()}
    first = groups_of(parts["test"])[0]
    parts["test"] = [row for row in parts["test"] if groups_of([row])[0] == first]
    return {"parts": parts}


class SaysYes:
    def right(self, answers, rows):
        return [True] * len(answers)


class SaysNo:
    def right(self, answers, rows):
        return [False] * len(answers)


def ungrouped(given: dict) -> dict:
    right = given["right"]
    return {"gain": paired_difference(right["tuned"], right["baseline"])}


def turned(given: dict) -> dict:
    right, groups = given["right"], groups_of(given["tests"])
    gain = paired_difference(right["baseline"], right["tuned"], groups=groups)
    return {"gain": gain}


def luck(given: dict) -> dict:
    """One more right answer than the baseline."""
    baseline = given["right"]["baseline"]
    tuned = list(baseline)
    tuned[baseline.index(False)] = True
    gain = paired_difference(tuned, baseline, groups=groups_of(given["tests"]))
    return {"gain": gain, "right": {"tuned": tuned, "baseline": baseline}}


def trained_before(given: dict) -> dict:
    folder = given["adapter"].parent / "zeros"
    if not folder.exists():
        save_adapter_with(folder, torch.zeros(2, 2))
    return {"adapter": folder}


def older(given: dict) -> dict:
    archive = given["archive"].parent / "old" / "model.tar.gz"
    archive.parent.mkdir(exist_ok=True)
    archive.write_bytes(b"packed")
    os.utime(archive, (1, 1))
    return {"archive": archive}


def report_with(**change: Any) -> Callable[[dict], dict]:
    return lambda given: {"report": replace(given["report"], **change)}


BROKEN = error("model.py", "it does not load", "mend it")
MISTAKES: dict[str, list[tuple[Callable[[dict], dict], str]]] = {
    "data_read": [
        (report_with(rows=7), "call `check"),
        (with_finding("phone numbers"), "names 'phone numbers'"),
        (
            lambda given: {
                **with_finding("phone numbers")(given),
                "decisions": {"phone numbers": "fine"},
            },
            "is no reason why 'phone numbers' may stay",
        ),
        (
            lambda given: {
                **with_finding("phone numbers")(given),
                "decisions": {"phone": "it is the hotline, meant for everybody"},
            },
            "`decisions` has 'phone', and the report names 'phone numbers'",
        ),
        (
            lambda given: {
                **with_finding("keys")(given),
                "decisions": {"keys": "nobody will ever see them"},
            },
            "cannot stay",
        ),
    ],
    "split_by_group": [
        (moved_rows, "a leak"),
        (one_group, "one group is tested"),
        (lambda given: {"parts": {"train": [], "test": []}}, "validation"),
        (
            lambda given: {
                "parts": {
                    **given["parts"],
                    "test": [{"instruction": "New?", "response": "Yes."}],
                }
            },
            "not in the file",
        ),
    ],
    "judge_examined": [
        (lambda given: {"judge": SaysYes()}, "yes to everything"),
        (lambda given: {"judge": SaysNo()}, "the file's own answer"),
    ],
    "baseline": [
        (lambda given: {"prompts": {**given["prompts"], "short": " "}}, "is empty"),
        (lambda given: {"prompts": {**given["prompts"], "short": "Hi"}}, "not hold"),
        (lambda given: {"prompts": {"short": "{question}"}}, "no choice"),
        (lambda given: {"tried": {"short": [True] * 8}}, "try all prompts"),
        (lambda given: {"chosen": "as asked"}, "not the best"),
        (lambda given: {"validation": given["tests"][:8]}, "flattered"),
        (
            lambda given: {"validation": given["validation"][:3]},
            "3 validation questions need",
        ),
        (lambda given: {"right": [True]}, "1 verdicts for"),
    ],
    "tuned": [
        (lambda given: {"adapter": Path("nowhere")}, "holds no adapter"),
        (trained_before, "before it was trained"),
        (lambda given: {"trained": given["tests"]}, "a leak"),
        (lambda given: {"held_out": [0.5]}, "before the training and after"),
        (lambda given: {"held_out": [0.5, 0.9]}, "lower the learning rate"),
        (lambda given: {"held_out": [0.5, float("nan")]}, "from 0.50 to nan"),
    ],
    "decision": [
        (lambda given: {"gain": 0.3}, "without an interval"),
        (ungrouped, "for independent"),
        (turned, "the sign is turned"),
        (luck, "may be luck"),
        (
            lambda given: {"gain": replace(given["gain"], value=0.9)},
            "compute it from both",
        ),
        (lambda given: {"serve": "both"}, "decide for"),
    ],
    "artifact": [
        (report_with(findings=[BROKEN]), "would not serve"),
        (
            report_with(unchecked=["whether it loads: nothing was executed"]),
            "load=True",
        ),
        (report_with(name="artifact"), "the archive itself"),
        (older, "older than the adapter"),
    ],
    "endpoint": [
        (lambda given: {"served": given["others"]}, "those of the other model"),
        (lambda given: {"served": ["", "a", "b"]}, "is empty"),
        (lambda given: {"served": ["x", "y", "z"]}, "the same notes"),
        (lambda given: {"asked": given["asked"][:1]}, "3 questions or more"),
    ],
    "page": [
        (lambda given: {"reply": web_reply(403)}, "send the key"),
        (lambda given: {"reply": web_reply(503)}, "status 503"),
        (lambda given: {"reply": web_reply(200, answer=" ")}, "without an answer"),
        (lambda given: {"refused": web_reply(200)}, "anybody could ask"),
    ],
    "nothing_left": [
        (
            lambda given: {
                "guard": a_guard(["endpoint"], ["endpoint course-1a2b3c4d-capstone"])
            },
            "endpoint course-…-capstone is still there",
        ),
        (lambda given: {"guard": a_guard([], [])}, "seen no endpoint"),
    ],
}
PLANTED = [
    pytest.param(step, change, hint, id=f"{step}: {hint}")
    for step, mistakes in MISTAKES.items()
    for change, hint in mistakes
]


@pytest.mark.parametrize(("step", "change", "hint"), PLANTED)
def test_a_planted_mistake_gets_its_hint(step: str, change, hint: str, good) -> None:
    road = new_road()
    verdict = getattr(road, step)(**good[step] | change(good[step]))
    assert verdict.passed is False
    assert hint in verdict.message
    assert road.measured == {}, "a check that fails must leave nothing for the report"
    assert road.passed == 0


def test_each_check_has_planted_mistakes() -> None:
    assert MISTAKES.keys() == STEPS.keys()


def test_a_class_is_right_only_alone() -> None:
    faqs = load_faqs(FOLDER / "messages.csv")
    row = faqs.frame.to_dict("records")[0]
    judge = judge_of(faqs, [row], [])
    said = ["billing", "It is about Billing.", "billing or fault", "fault", ""]
    assert judge.right(said, [row] * 5) == [True, True, False, False, False]
    prompts = suggested_prompts(faqs)
    assert all("billing" in text and "{question}" in text for text in prompts.values())


def test_a_class_may_hold_another_or_end_in_a_sign() -> None:
    judge = ClassJudge(["spam", "not spam", "C++"])
    rows = [{"response": "not spam"}, {"response": "spam"}, {"response": "C++"}]
    assert judge.right(["Not spam.", "spam", "It is c++!"], rows) == [True] * 3
    assert judge.right(["spam", "not spam", "spam, C++"], rows) == [False] * 3


def test_the_interval_draws_the_groups_of_the_split(tmp_path: Path) -> None:
    """Of a file whose groups have another column's name than those of the answers."""
    file = tmp_path / "mine.csv"
    lines = [
        f"{ask} {n}?,{'yes' if n % 2 else 'no'},{n}"
        for n in range(30)
        for ask in ("Does it hold", "Would it keep")
    ]
    file.write_text("\n".join(["question,answer,topic", *lines]), encoding="utf-8")
    faqs, road = load_faqs(file), new_road()
    parts = split(faqs)
    assert road.split_by_group(faqs, parts)
    rows = [row for part in parts.values() for row in part.to_list()]
    told = [row | {"context": "a note"} for row in rows]
    about = dict(zip(road.groups(told), (row["topic"] for row in rows), strict=True))
    assert len(about) == len(set(about.values())) == 30


def test_few_groups_are_said() -> None:
    road, rows = new_road(), [{"instruction": f"{n}?", "response": "a"} for n in "12"]
    right = {"tuned": [True] * 2, "baseline": [False] * 2}
    gain = paired_difference(right["tuned"], right["baseline"], groups=groups_of(rows))
    said = str(road.decision("tuned", gain, right, rows))
    assert "above zero, on 2 questions in 1 groups: too few groups" in said


def test_a_sentence_says_which_way_the_gain_goes() -> None:
    """Lost points are not sold as gained ones."""
    lost = Difference(-0.2, -0.35, -0.05, 28)
    told = [
        ("On 28 questions it gains 20 points (-35 to -5).", False),
        ("On 28 questions it gains -20 points (35 to 5).", False),
        ("On 28 questions it answers 20 points fewer (−35 to −5).", True),
        ("On 28 questions it differs by -20 points (-35 to -5).", True),
    ]
    for sentence, right in told:
        assert bool(check_sentence(sentence, lost)) is right, sentence
    assert check_sentence(
        "28 questions: +20 points (5 to 35).", Difference(0.2, 0.05, 0.35, 28)
    )


# --- the report -----------------------------------------------------------------------


def test_the_report_shows_what_was_measured(good, tmp_path: Path) -> None:
    road = walked(good)
    gain = road.measured["gain"]
    points, low, high = (round(100 * x) for x in (gain.value, gain.low, gain.high))
    sentence = f"On {gain.n} <questions> it gains {points:+} points ({low:+} to {high})"
    file = write_page(road, tmp_path, sentence)
    text = file.read_text("utf-8")
    assert f"it gains {100 * gain.value:+.0f} points" in text
    assert f"({100 * gain.low:+.0f} to {100 * gain.high:+.0f})" in text
    assert "Checks passed: 10 of 10" in text
    assert f"On {gain.n} &lt;questions&gt; it gains" in text
    assert text.count("✓") == 10
    # What the check of the sentence refuses is not printed.
    refused = write_page(road, tmp_path, "Our model is always right.").read_text(
        "utf-8"
    )
    assert "always right" not in refused
    assert "2.50 → 0.50" in text
    assert NOT_REACHED not in text
    assert not re.search(r"(src|href)=|<script", text), "it must need no network"
    assert str(ROOT) not in text
    # Other measurements, another page.
    other = dict(good["decision"])
    other["right"] = {
        "baseline": other["right"]["baseline"],
        "tuned": [True] * len(other["tests"]),
    }
    pair = other["right"]["tuned"], other["right"]["baseline"]
    other["gain"] = paired_difference(*pair, groups=groups_of(other["tests"]))
    assert road.decision(**other)
    assert f"it gains {100 * other['gain'].value:+.0f} points" in page(road)


def test_a_check_that_fails_now_takes_back_what_it_had_measured(good) -> None:
    road = walked(good)
    assert road.decision(**good["decision"]) and "gain" in road.measured
    assert not road.decision(**good["decision"] | {"gain": 0.5})
    assert not {"gain", "serve", "tuned"} & road.measured.keys()
    assert "There is no decision yet." in page(road)


def test_what_was_said_of_another_model_is_taken_back(good) -> None:
    road = walked(good)
    assert road.decision(**good["decision"]) and road.passed == 10
    assert road.decision(**good["decision"] | {"serve": "baseline"})
    assert road.passed == 7
    text = page(road)
    assert "and yet the baseline is served" in text
    for step in ("artifact", "endpoint", "page"):
        assert step not in road.verdicts
        assert f"{STEPS[step]}: {NOT_REACHED}" in text
    assert not {"archive", "answers"} & road.measured.keys()


def test_answers_and_the_printed_note_are_reported_as_they_were_judged(good) -> None:
    road = walked(good)
    assert not road.endpoint(**good["endpoint"] | {"right": [True]})
    assert road.endpoint(**good["endpoint"] | {"right": [True, False, True]})
    decision = dict(good["decision"])
    printed = [n % 2 == 0 for n in range(len(decision["tests"]))]
    decision["right"] = decision["right"] | {"note printed": printed}
    assert road.decision(**decision)
    text = page(road)
    answers = good["endpoint"]["served"]
    for sign, answer in zip("✓✗✓", answers, strict=True):
        assert f"{sign} {escape(answer)}" in text
    assert "no model: the note found, printed" in text


def test_rows_of_one_group_are_counted_each() -> None:
    """Also in a file whose first rows have a group each."""

    def counts_groups(train, held_out):
        return len(set(groups_of(train)) & set(groups_of(held_out)))

    def counts_rows(train, held_out):
        known = set(groups_of(train))
        return sum(group in known for group in groups_of(held_out))

    train = [{"instruction": f"{n}?", "response": f"answer {n}"} for n in range(9)]
    held_out = [{"instruction": "new?", "response": "another"}]
    assert not check_leaks(counts_groups, train, held_out)
    assert check_leaks(counts_rows, train, held_out)


@pytest.mark.parametrize("words", ["20% more", "20 percent better", "20 % fewer"])
def test_a_share_of_a_share_is_no_gain_in_points(words: str) -> None:
    gain = Difference(0.2, 0.05, 0.35, 28)
    assert (
        "percentage points"
        in check_sentence(
            f"On 28 questions {words} right answers (5 to 35).", gain
        ).message
    )
    assert check_sentence("On 28 questions 20 points more, 5% to 35%.", gain)


def test_what_was_not_reached_is_said(good) -> None:
    text = page(walked(good, steps=4))
    assert "There is no decision yet." in text
    assert "Checks passed: 4 of 10" in text
    assert text.count("✗") == 6
    assert NOT_REACHED in text


# --- the whole road -------------------------------------------------------------------


def write_own(folder: Path) -> Path:
    """Write 60 rows as a learner may bring them: no groups, one long broken answer."""
    shipped = load_faqs(HANDBOOK).frame.drop_duplicates("response")
    pairs = shipped[["instruction", "response"]].values.tolist()
    pairs += [[f"Please tell me: {ask}", answer] for ask, answer in pairs[: 60 - 46]]
    pairs[0][1] += "\nThis is so  for everybody, and it has been so for years." * 5
    file = folder / "own.jsonl"
    rows = [json.dumps({"question": ask, "answer": text}) for ask, text in pairs]
    file.write_text("\n".join(rows), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", FILES)
def test_the_road_with_another_file(name: str, tmp_path: Path) -> None:
    file = write_own(tmp_path) if name == OWN else FOLDER / name
    given = {"COURSE_DATA": str(file), "COURSE_MODEL": "lab"}
    build = run_lessons(tmp_path, "09", **given)
    run = build / "run" / "09_capstone.ipynb"
    verdicts = [
        output.data.get("text/plain", "")
        for cell in nbformat.read(run, nbformat.NO_CONVERT).cells
        for output in cell.get("outputs", [])
        if "data" in output
    ]
    told = [text for text in verdicts if re.match(r"[✓✗].* of 10\b", text)]
    assert [text[0] for text in told] == ["✓"] * 10, told
    assert claims_of(run)["all ten checks are passed"]
    text = (build / "capstone" / "capstone.html").read_text("utf-8")
    assert f"<h1>{escape(file.name)}: from file to page</h1>" in text
    assert NOT_REACHED not in text


@pytest.mark.parametrize("paper", ["A4", "Letter"])
def test_the_report_is_one_page_on_paper(
    good, started, tmp_path: Path, paper: str
) -> None:
    road = walked(good)
    long = "An answer of sixty-four tokens, as many as a model may give here. " * 4
    road.measured["answers"] = [(long[:130], long)] * 4
    road.measured["kept"] = {"likeness": long[:130], "duplicates": long[:130]}
    file = write_page(road, tmp_path)
    visit = started.new_page()
    visit.goto(file.as_uri())
    printed = visit.pdf(format=paper)
    visit.close()
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 1
