"""evaluation.json and the page beside it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from utils.evaluation.report import (
    ReportError,
    fingerprint,
    read_report,
    verdict,
    write_report,
)
from utils.evaluation.scores import paired_difference, proportion
from utils.files import FileError

MANY, FEW = [True] * 9 + [False], [False] * 9 + [True]


def scores(base, tuned):
    return {
        "base": proportion(base),
        "tuned": proportion(tuned),
        "difference": paired_difference(tuned, base),
    }


@pytest.fixture
def content():
    return {
        "model": "lab",
        "data": "data/<faqs>.csv",
        "adapter": "0123456789abcdef",
        "right": {"wording": scores(FEW, MANY), "unread": scores(FEW, FEW)},
        "loss": {"wording": {"base": proportion(MANY), "tuned": proportion(FEW)}},
        "text": {"wording": {"base": {"chrF": 0.2}, "tuned": {"chrF": 0.9}}},
        "skills": {"word pairs": {"base": proportion(MANY), "tuned": proportion(FEW)}},
        "retrieval": {"unread": {"tuned": proportion(FEW), "page": proportion(MANY)}},
    }


class Reader(HTMLParser):
    """Collects the text, and makes sure that what is opened is closed."""

    VOID = {"meta", "rect", "path"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read_page(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert not reader.open
    return reader


def test_the_file_holds_every_estimate_with_its_interval(tmp_path, content) -> None:
    file, _ = write_report(tmp_path / "new", content)
    found = read_report(file)
    assert found["schema"] == 1
    assert found["right"]["wording"]["tuned"]["value"] == 0.9
    assert set(found["right"]["wording"]["difference"]) == {"value", "low", "high", "n"}
    assert found["text"]["wording"]["tuned"] == {"chrF": 0.9}


def test_the_page_says_what_the_figures_say(tmp_path, content) -> None:
    _, path = write_report(tmp_path, content | {"feedback": "tuned 3 <b>times</b>"})
    page = read_page(path)
    assert "better than the one it was made from: trained facts" in page.text
    assert "Most of its answers are wrong: facts it has never read." in page.text
    for wanted in ("90%", "10%", "+80 points", "word pairs", "data/<faqs>.csv"):
        assert wanted in page.text
    assert "tuned 3 <b>times</b>." in page.text
    assert page.tags.count("rect") == 2 * 2 + 2
    assert "script" not in page.tags
    source = path.read_text(encoding="utf-8")
    links = re.findall(r"(?:href|src)=\"([^\"]+)", source)
    assert links == ["evaluation.json"]


def test_the_same_report_gives_the_same_bytes(tmp_path, content) -> None:
    first = [path.read_bytes() for path in write_report(tmp_path, content)]
    assert first == [path.read_bytes() for path in write_report(tmp_path, content)]


@pytest.mark.parametrize(
    ("right", "words"),
    [
        ({"wording": (FEW, MANY)}, "better than the one it was made from: trained"),
        ({"wording": (MANY, MANY)}, "does not answer better, or too few questions"),
        ({"wording": (MANY, FEW)}, "Most of its answers are wrong: trained facts"),
        # A gain that still leaves most answers wrong is none to report as a success.
        ({"unread": ([False] * 90, [True] * 20 + [False] * 70)}, "Most of its answers"),
    ],
)
def test_verdicts(tmp_path, content, right, words) -> None:
    content["right"] = {part: scores(*pair) for part, pair in right.items()}
    found = verdict(read_report(write_report(tmp_path, content)[0]))
    assert words in found
    assert found.count(".") == 1


def test_a_report_without_a_section_is_not_written(tmp_path, content) -> None:
    del content["skills"], content["loss"]
    with pytest.raises(ReportError, match="has no loss, skills: run"):
        write_report(tmp_path, content)
    assert not list(tmp_path.iterdir())
    content |= {"skills": {}, "loss": {"wording": object()}}
    with pytest.raises(TypeError, match="cannot hold object"):
        write_report(tmp_path, content)


def test_a_full_disk_leaves_the_old_report(tmp_path, content, monkeypatch) -> None:
    file, _ = write_report(tmp_path, content)
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(FileError, match="No space left on device.*unchanged"):
        write_report(tmp_path, content | {"model": "other"})
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "evaluation.html",
        "evaluation.json",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no readable report"),
        ("[]", "no readable report"),
        ('{"schema": 1}', "lacks model"),
        (None, "no readable report"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, text, message) -> None:
    file = tmp_path / "evaluation.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ReportError, match=f"{message}.*run 05_evaluation.ipynb again"):
        read_report(file)


def test_a_report_of_another_schema_is_refused(tmp_path, content) -> None:
    file, _ = write_report(tmp_path, content)
    other = json.loads(file.read_text()) | {"schema": 2}
    file.write_text(json.dumps(other))
    with pytest.raises(ReportError, match="is of schema 2; expected schema 1"):
        read_report(file)


def test_a_fingerprint_is_of_the_weights(tmp_path) -> None:
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(b"one")
    first = fingerprint(tmp_path)
    weights.write_bytes(b"two")
    assert len(first) == 64
    assert fingerprint(tmp_path) != first
