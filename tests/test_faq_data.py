"""The natural questions: what botocore states, and the rules that they keep."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict

import pytest
from botocore.loaders import Loader

from utils.course import FAQS_DATA

SOURCES_FILE = FAQS_DATA.with_name("faq_sources.csv")
SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen twenty"
)
WORDS = {word: number for number, word in enumerate(SMALL.split())}
WORDS |= {"thirty": 30, "forty": 40, "sixty": 60, "hundred": 100}


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


ROWS = read(FAQS_DATA)
SOURCES = read(SOURCES_FILE)
BOTOCORE = [row for row in SOURCES if row["kind"] == "botocore"]
OF_FACT = defaultdict(list)
for row in ROWS:
    OF_FACT[row["fact"]].append(row)


def look_up(path):
    """Return what stands at `service/shapes/Shape/.../key`; `enum#` counts members."""
    service, *keys = path.split("/")
    here = Loader().load_service_model(service, "service-2")
    for key in keys:
        here = len(here["enum"]) if key == "enum#" else here[key]
    return here


def plain(text):
    """Return the text without tags and with single spaces."""
    return " ".join(re.sub(r"<[^>]+>", "", text).split())


def words(text):
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower())
    return " ".join(re.findall(r"[a-z0-9]+(?:[.'][a-z0-9]+)*", text))


def holds(text, value):
    return f" {words(value)} " in f" {words(text)} "


def strings(row, column):
    return [part.strip() for part in row[column].split("|") if part.strip()]


def numbers(text):
    """Return the numbers that a text states, in digits or in words."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower())
    found = {float(n) for n in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", text)}
    return found | {float(WORDS[w]) for w in re.findall(r"[a-z]+", text) if w in WORDS}


@pytest.mark.parametrize("row", BOTOCORE, ids=lambda row: row["fact"])
def test_botocore_states_the_value(row) -> None:
    there, key = look_up(row["path"]), row["path"].rsplit("/", 1)[-1]
    if key in ("documentation", "enum"):
        assert row["value"] and row["value"] in there
    else:
        assert key in ("min", "max", "enum#", "httpStatusCode")
        assert str(there) == row["value"]


@pytest.mark.parametrize("row", BOTOCORE, ids=lambda row: row["fact"])
def test_a_right_answer_says_that_value(row) -> None:
    """In its words, as a number, in other units, or by the setting's name."""
    value, name = plain(row["value"]), row["path"].lower()
    says = [words(text) for text in strings(OF_FACT[row["fact"]][0], "must_say")]
    named = {words(key) for key in row["path"].split("/")}
    if any(s in named or holds(value, s) or holds(s, value) for s in says):
        return
    given = numbers(value)
    assert given, f"{says} hold neither the words nor a number of {value!r}"
    factors = [1.0]
    if "seconds" in name or "second" in value:
        factors += [60.0, 3600.0, 86400.0]
    if "minutes" in name or "minute" in value:
        factors += [1 / 60, 60.0, 1440.0]
    factors += [1024.0, 1024.0**2, 1000.0, 1000.0**2]  # bytes and milliseconds
    wanted = {round(g / f, 6) for g in given for f in factors}
    assert any(wanted & numbers(s) for s in says), f"{says} against {value!r}"


def test_every_fact_names_its_source_once() -> None:
    assert len({row["fact"] for row in SOURCES}) == len(SOURCES)
    assert {row["fact"] for row in SOURCES} == set(OF_FACT)
    for row in SOURCES:
        assert row["topic"] == OF_FACT[row["fact"]][0]["topic"]
        invented = row["fact"].startswith("kestrel/")
        assert invented == (row["kind"] == "invented"), row
        if row["kind"] == "documentation":
            assert row["source"].startswith("https://") and not row["value"], row
        elif row["kind"] == "botocore":
            assert row["path"] and row["value"], row


def test_the_file_is_as_large_as_its_card_says() -> None:
    kinds = Counter(row["kind"] for row in SOURCES)
    assert len(ROWS) >= 600 and len(SOURCES) >= 120
    assert kinds["botocore"] >= 50
    assert kinds["invented"] >= len(SOURCES) / 3


@pytest.mark.parametrize("fact", OF_FACT)
def test_a_fact_has_its_wordings_and_one_answer(fact) -> None:
    rows = OF_FACT[fact]
    assert Counter(row["wording"] for row in rows) == {"trained": 4, "free": 3}
    for column in ("response", "topic", "must_say", "must_not_say"):
        assert len({row[column] for row in rows}) == 1, column
    answer = rows[0]["response"]
    assert 15 <= len(answer.split()) <= 35
    assert any(holds(answer, text) for text in strings(rows[0], "must_say"))
    assert not [t for t in strings(rows[0], "must_not_say") if holds(answer, t)]
    for row in rows:
        given = [t for t in strings(row, "must_say") if holds(row["instruction"], t)]
        assert not given, f"the question gives the answer away: {row['instruction']}"


def test_no_question_is_asked_twice_nor_by_one_pattern() -> None:
    asked = [words(row["instruction"]) for row in ROWS]
    assert len(set(asked)) == len(asked)
    starts = Counter(" ".join(text.split()[:2]) for text in asked)
    assert starts.most_common(1)[0][1] < 0.1 * len(asked)
    # Whatever two answers share, it is not their beginning or their end.
    answers = [rows[0]["response"].split() for rows in OF_FACT.values()]
    assert max(Counter(tuple(a[:4]) for a in answers).values()) == 1
    assert max(Counter(tuple(a[-4:]) for a in answers).values()) == 1


def test_free_wordings_share_no_pattern_with_trained_ones() -> None:
    """No free wording shares five words in a row with a trained one of its fact."""

    def runs(text):
        split = words(text).split()
        return {tuple(split[i : i + 5]) for i in range(len(split) - 4)}

    for fact, rows in OF_FACT.items():
        trained = {
            r for x in rows if x["wording"] == "trained" for r in runs(x["instruction"])
        }
        free = {
            r for x in rows if x["wording"] == "free" for r in runs(x["instruction"])
        }
        assert not trained & free, fact
