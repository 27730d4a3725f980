"""Reading the learners' questions and answers, and splitting them."""

from __future__ import annotations

import re

import pytest

from utils.course import FAQS_DATA, ROOT
from utils.dataset.faqs import Faqs, load_faqs
from utils.dataset.splits import split

QUESTION, ANSWER = "What is SageMaker?", "It is a service for machine learning."
SECOND_QUESTION, SECOND_ANSWER = "Who uses it?", "Teams that train models use it."
PLAIN = (
    f"instruction,response\n{QUESTION},{ANSWER}\n{SECOND_QUESTION},{SECOND_ANSWER}\n"
)
EXPECTED = [(QUESTION, ANSWER), (SECOND_QUESTION, SECOND_ANSWER)]


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, encoding: str = "utf-8"):
        path = tmp_path / "mine.csv"
        raw = content if isinstance(content, bytes) else content.encode(encoding)
        path.write_bytes(raw)
        return path

    return write


def pairs(faqs: Faqs) -> list[tuple[str, str]]:
    return list(zip(faqs.frame["instruction"], faqs.frame["response"], strict=True))


def repairs(faqs: Faqs) -> list[str]:
    """The notes but the last, which says how a foreign file is split."""
    assert "split into train, validation and test" in faqs.notes[-1]
    return faqs.notes[:-1]


# Files that load


def test_a_plain_file_loads_without_repairs(write) -> None:
    faqs = load_faqs(write(PLAIN))
    assert pairs(faqs) == EXPECTED
    assert repairs(faqs) == []
    assert "No column says which questions belong together" in faqs.notes[-1]
    assert not faqs.has_facts
    assert list(faqs.frame.index) == [2, 3]


@pytest.mark.parametrize(
    "content, note",
    [
        (PLAIN.encode("utf-8-sig"), "byte-order mark"),
        (PLAIN.encode("utf-16"), "UTF-16"),
        (PLAIN.encode("utf-16-le"), "UTF-16 without a mark"),
        (PLAIN.encode("utf-16-be"), "UTF-16 without a mark"),
        (PLAIN.replace(",", ";"), "separated by semicolon"),
        (PLAIN.replace(",", "\t"), "separated by tab"),
        (PLAIN.replace(",", "|"), "separated by vertical bar"),
        ("sep=;\n" + PLAIN.replace(",", ";"), "separated by semicolon"),
        (PLAIN.partition("\n")[2], "no header"),
        (PLAIN.partition("\n")[2].replace(",", ";"), "no header"),
        (PLAIN.replace("is Sage", "is  Sage").replace(",", " , "), "Stray white space"),
        (PLAIN.replace("a service", "a\u00a0service"), "invisible characters"),
        (PLAIN.replace("service", "\u200bservice"), "invisible characters"),
        (PLAIN.replace("\nWho", "\n\n\nWho"), "Empty lines were left out: rows 3, 4"),
        (PLAIN.replace("\nWho", "\n,\nWho"), "Empty lines were left out: row 3"),
        (
            PLAIN + f"what is  SAGEMAKER,{ANSWER}\n",
            "Repeated questions were left out: row 4",
        ),
        (PLAIN + f"{QUESTION},Another.\n", "another answer were left out.*row 4"),
    ],
)
def test_what_can_be_repaired_is_repaired_with_a_note(write, content, note) -> None:
    faqs = load_faqs(write(content))
    assert pairs(faqs) == EXPECTED
    assert any(re.search(note, each) for each in repairs(faqs)), faqs.notes


@pytest.mark.parametrize(
    "header, names",
    [
        ("question,answer", ["question", "answer"]),
        ("Prompt,Completion", ["Prompt", "Completion"]),
        (" Instruction , RESPONSE ", ["Instruction", "RESPONSE"]),
        ('"input","output"', ["input", "output"]),
        ("Q,A", ["Q", "A"]),
        ("User_Question,assistant-answer", ["User_Question", "assistant-answer"]),
    ],
)
def test_other_usual_column_names(write, header, names) -> None:
    faqs = load_faqs(write(PLAIN.replace("instruction,response", header)))
    assert pairs(faqs) == EXPECTED
    assert [
        name for name in names if any(f"{name!r}" in n for n in faqs.notes)
    ] == names


def test_columns_in_another_order_and_further_ones_are_kept(write) -> None:
    faqs = load_faqs(write(f"id,answer,Topic,question\n7,{ANSWER},use,{QUESTION}\n"))
    assert pairs(faqs) == EXPECTED[:1]
    assert list(faqs.frame.columns) == ["id", "response", "topic", "instruction"]
    assert list(faqs.frame["topic"]) == ["use"]


def test_the_better_name_wins_where_two_would_do(write) -> None:
    content = f"input,instruction,output\n,{QUESTION},{ANSWER}\n"
    assert pairs(load_faqs(write(content))) == EXPECTED[:1]


@pytest.mark.parametrize("ending", ["\r\n", "\r", "\n"])
def test_line_endings(write, ending) -> None:
    assert pairs(load_faqs(write(PLAIN.replace("\n", ending)))) == EXPECTED


def test_quoted_texts_with_commas_quotes_and_lines(write) -> None:
    answer = 'It says "yes", then\nit stops.'
    quoted = answer.replace('"', '""')
    faqs = load_faqs(write(f'instruction, response\n"{QUESTION}", "{quoted}"\n'))
    assert pairs(faqs) == [(QUESTION, answer)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_letters_beyond_ascii_survive(write, encoding) -> None:
    content = "question,answer\nWas kostet es?,Für Endpunkte fällt je Stunde 1 € an.\n"
    faqs = load_faqs(write(content, encoding))
    assert pairs(faqs)[0][1] == "Für Endpunkte fällt je Stunde 1 € an."
    assert ("Windows-1252" in faqs.notes[0]) == (encoding == "cp1252")


def test_other_scripts_survive(write) -> None:
    content = "instruction,response\n什么是SageMaker？,它是一项服务。\nما هو؟,خدمة.\n"
    assert pairs(load_faqs(write(content)))[0] == (
        "什么是SageMaker？",
        "它是一项服务。",
    )


def test_letters_misread_before_are_restored(write) -> None:
    misread = "Amazon’s café – naïve".encode().decode("cp1252")
    faqs = load_faqs(write(f"instruction,response\nWhat?,{misread}\n"))
    assert pairs(faqs)[0][1] == "Amazon’s café – naïve"
    assert any("restored in response: row 2" in note for note in faqs.notes)


def test_letters_misread_twice_or_next_to_sound_ones_are_restored(write) -> None:
    twice = "café"
    for _ in range(2):
        twice = twice.encode().decode("cp1252")
    faqs = load_faqs(write(f"instruction,response\nWhat?,{twice}\nWho?,A é and Ã©\n"))
    assert [response for _, response in pairs(faqs)] == ["café", "A é and é"]


def test_nothing_but_misread_letters_is_restored(write) -> None:
    text = "“It’s” &amp; ﬁne… Ｗｉｄｅ"
    faqs = load_faqs(write(f"instruction,response\nWhat?,{text}\n"))
    assert pairs(faqs) == [("What?", text)]
    assert [note.partition(" such")[0] for note in repairs(faqs)] == ["HTML entities"]


def test_true_french_is_not_restored_into_something_else(write) -> None:
    faqs = load_faqs(write("instruction,response\nQuoi?,Un âne à côté – « Âge »\n"))
    assert pairs(faqs)[0][1] == "Un âne à côté – « Âge »"


def test_lost_letters_are_pointed_out(write) -> None:
    faqs = load_faqs(write("instruction,response\nWhat?,It costs \ufffd 5.\n"))
    assert any("lost" in note and "row 2" in note for note in faqs.notes)


def test_indented_code_keeps_its_indent(write) -> None:
    code = "def f():\n    return 1"
    faqs = load_faqs(write(f'instruction,response\nShow f.,"{code}"\n'))
    assert pairs(faqs)[0][1] == code


@pytest.mark.parametrize(
    "answer", ["NA", "None", "nan", "null", "0049", "007", "1e5", "TRUE", "-1", "1,5"]
)
def test_an_answer_that_programs_take_for_something_else_stays_text(
    write, answer
) -> None:
    faqs = load_faqs(write(f'instruction,response\nWhich?,"{answer}"\n'))
    assert pairs(faqs) == [("Which?", answer)]
    looks_empty = answer.lower() in ("na", "none", "nan", "null")
    noted = any("kept as text" in note and "row 2" in note for note in faqs.notes)
    assert noted == looks_empty


@pytest.mark.parametrize("mark", ["#N/A", "<NA>"])
def test_what_only_exports_write_is_a_missing_answer(write, mark) -> None:
    with pytest.raises(ValueError, match="row 2.*expected a response"):
        load_faqs(write(f"instruction,response\nWhich fees?,{mark}\n"))


def test_a_question_cannot_be_nan(write) -> None:
    with pytest.raises(ValueError, match="row 2.*expected an instruction"):
        load_faqs(write("instruction,response\nnan,It is so.\n"))


# Files that fail, with file, row and remedy


@pytest.mark.parametrize(
    "content, message",
    [
        (PLAIN + ",An answer.\n", r"mine.csv, row 4: expected an instruction.*delete"),
        (
            PLAIN + "A question?,\n",
            r"row 4: expected a response.*'A question",
        ),
        (PLAIN + "A question?\n", r"mine.csv, row 4: expected a response.*Fill it in"),
        (PLAIN + "A question?,\u00a0\n", r"mine.csv, row 4: expected a response"),
        (PLAIN + "A?,\nB?,\n", r"row 4 \(also row 5\)"),
        (PLAIN + "Why?,Well, it is so.\n", r"mine.csv, row 4: 3 columns.*row 1 has 2"),
        (PLAIN + 'Why?,"Because\n', r"mine.csv, row 4: a double quote .*never closes"),
        ("", r"mine.csv is empty"),
        (" \n\n", r"mine.csv is empty"),
        ("\ufeff\n,,\n", r"mine.csv has no text"),
        ("instruction,response\n", r"mine.csv has a header in row 1 but no rows"),
        ("instruction\nWhat?\n", r"mine.csv, row 1: one column only.*instruction and"),
        ("Only a list.\nOf lines.\n", r"mine.csv, row 1: one column only"),
        (PLAIN.replace("response", "text"), r"row 1: no column for response.*'text'"),
        (PLAIN.replace("instruction,response", "Frage,Antwort"), r"'Frage', 'Antwort'"),
        (f"1,{QUESTION},{ANSWER}\n2,Who?,You.\n", r"row 1: there is no header.*Name"),
        (
            f"question,answer,question\n{QUESTION},{ANSWER},x\n",
            r"two columns.*named",
        ),
        (b"PK\x03\x04\x14\x00", r"Excel workbook.*CSV UTF-8"),
        (b"PAR1....", r"Parquet.*cannot be read"),
        (f"{QUESTION},{ANSWER},purpose,x\n", r"no header, and 4 columns.*names"),
        (f"use,{QUESTION},{ANSWER}\nuse,Who?,We.\n", r"no header, and 3 columns"),
        (b"instruction,response\nWhat?,\x81\x8d\xff\n", r"mine.csv, line 2.*UTF-8"),
    ],
)
def test_what_cannot_be_repaired_is_an_error(write, content, message) -> None:
    with pytest.raises(ValueError, match="(?s)" + message):
        load_faqs(write(content))


def test_a_row_number_counts_a_cell_of_several_lines_as_one_row(write) -> None:
    content = 'instruction,response\nWhat?,"one\ntwo\nthree"\n\nWho?,\n'
    with pytest.raises(ValueError, match="row 4: expected a response"):
        load_faqs(write(content))


def test_a_row_too_wide_after_a_cell_of_several_lines(write) -> None:
    content = 'instruction,response\nWhat?,"one\ntwo\nthree"\nWho?,You, and me\n'
    with pytest.raises(ValueError, match="row 3: 3 columns"):
        load_faqs(write(content))


def test_a_missing_file_is_an_error_that_names_the_variable(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="none.csv.*COURSE_DATA"):
        load_faqs(tmp_path / "none.csv")


def test_a_folder_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match="is a folder"):
        load_faqs(tmp_path)


# The course's own file


def test_the_courses_file_loads_unchanged_and_splits_by_fact() -> None:
    path = ROOT / "data" / "lab_questions.csv"
    faqs = load_faqs(path)
    assert faqs.notes == []
    assert faqs.has_facts
    assert len(faqs) >= 300
    parts = split(faqs)
    assert list(parts) == ["train", "validation", "wording", "fact", "unread"]
    assert len(parts["validation"]) == 14
    assert min(len(parts[name]) for name in ("wording", "fact", "unread")) >= 40
    facts = {name: set(part["fact"]) for name, part in parts.items()}
    assert facts["wording"] <= facts["train"]
    assert not (facts["fact"] | facts["unread"]) & facts["train"]
    assert sum(map(len, parts.values())) == len(faqs)


def test_an_unknown_fact_means_the_split_of_an_own_file_and_a_note(write) -> None:
    own = (ROOT / "data" / "lab_questions.csv").read_text(encoding="utf-8")
    faqs = load_faqs(write(own + "Is it mine?,It is mine.,own,my/fact\n"))
    assert not faqs.has_facts
    assert f"fact of row {len(own.splitlines()) + 1}" in faqs.notes[-1]
    assert set(split(faqs)) == {"train", "validation", "test"}


def test_the_natural_file_loads_without_notes_and_splits_by_fact() -> None:
    faqs = load_faqs(FAQS_DATA)
    assert faqs.notes == []
    parts = split(faqs)
    assert list(parts) == ["train", "validation", "wording", "fact"]
    facts = {name: set(part["fact"]) for name, part in parts.items()}
    assert facts["wording"] == facts["train"]
    assert not facts["train"] & (facts["validation"] | facts["fact"])
    assert min(len(part) for part in parts.values()) >= 40
