"""Files of each format become the same questions and answers, whatever their name."""

from __future__ import annotations

import gzip
import io
import json

import datasets
import numpy
import pandas
import pytest

from utils.dataset.faqs import Faqs, load_faqs
from utils.dataset.table import DataError

PAIRS = [
    ("What is SageMaker?", "It is a service for machine learning."),
    ("Who uses it?", "Teams that train models use it."),
]
RECORDS = [{"instruction": q, "response": a} for q, a in PAIRS]


@pytest.fixture
def load(tmp_path):
    """Write a file under a name, then load it."""

    def load(name: str, content: str | bytes | list) -> Faqs:
        if isinstance(content, list):
            content = "".join(
                json.dumps(row, ensure_ascii=False) + "\n" for row in content
            )
        raw = content if isinstance(content, bytes) else content.encode("utf-8")
        (tmp_path / name).write_bytes(raw)
        return load_faqs(tmp_path / name)

    return load


def pairs(faqs: Faqs) -> list[tuple[str, str]]:
    return list(zip(faqs.frame["instruction"], faqs.frame["response"], strict=True))


def parquet(rows: list[dict]) -> bytes:
    stream = io.BytesIO()
    pandas.DataFrame(rows).to_parquet(stream)
    return stream.getvalue()


def noted(faqs: Faqs, text: str) -> bool:
    return any(text in note for note in faqs.notes)


# Layouts of JSON

LAYOUTS = {
    "lines": "\n".join(json.dumps(row) for row in RECORDS),
    "lines, empty ones between": "\n\n".join(json.dumps(row) for row in RECORDS),
    "lines, Windows": "\r\n".join(json.dumps(row) for row in RECORDS),
    "list": json.dumps(RECORDS),
    "list over lines": json.dumps(RECORDS, indent=2),
    "objects over lines": "\n".join(json.dumps(row, indent=2) for row in RECORDS),
    "list inside": json.dumps({"version": "1.0", "data": RECORDS}),
    "train beside test": json.dumps({"test": RECORDS[:1], "train": RECORDS}),
    "columns": json.dumps(
        {"instruction": [q for q, _ in PAIRS], "response": [a for _, a in PAIRS]}
    ),
    "pandas columns": pandas.DataFrame(RECORDS).to_json(),
    "pandas split": pandas.DataFrame(RECORDS).to_json(orient="split"),
    "pandas index": pandas.DataFrame(RECORDS).to_json(orient="index"),
    "pandas records": pandas.DataFrame(RECORDS).to_json(orient="records"),
    "pandas table": pandas.DataFrame(RECORDS).to_json(orient="table"),
    "question as key": json.dumps(dict(PAIRS)),
    "lists of two": json.dumps([list(pair) for pair in PAIRS]),
    "lists with header": json.dumps([["question", "answer"], *map(list, PAIRS)]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_each_layout_of_json_gives_the_same_pairs(load, layout, mark) -> None:
    assert pairs(load("mine.json", mark + LAYOUTS[layout])) == PAIRS


def test_one_object_is_one_row(load) -> None:
    assert pairs(load("mine.jsonl", json.dumps(RECORDS[0]))) == PAIRS[:1]
    assert pairs(load("mine.json", json.dumps(RECORDS[0], indent=1))) == PAIRS[:1]


@pytest.mark.parametrize(
    "names",
    [
        ("question", "answer"),
        ("prompt", "completion"),
        ("input", "output"),
        ("query", "reply"),
        ("Human", "Assistant"),
    ],
)
def test_pairs_under_other_usual_names(load, names) -> None:
    rows = [dict(zip(names, pair, strict=True)) for pair in PAIRS]
    faqs = load("mine.jsonl", rows)
    assert pairs(faqs) == PAIRS
    assert noted(faqs, f"{names[0]!r} was read as 'instruction'")


def test_row_numbers_are_the_lines_of_json_lines(load) -> None:
    lines = [json.dumps(RECORDS[0]), "", json.dumps(RECORDS[1])]
    assert list(load("mine.jsonl", "\n".join(lines)).frame.index) == [1, 3]
    assert list(load("mine.json", json.dumps(RECORDS, indent=2)).frame.index) == [1, 2]


@pytest.mark.parametrize("name", ["mine.csv", "mine.tsv", "mine.xlsx", "mine.parquet"])
def test_json_under_another_name_is_read_as_json_with_a_note(load, name) -> None:
    faqs = load(name, RECORDS)
    assert pairs(faqs) == PAIRS
    assert noted(faqs, "holds JSON Lines and was read as such")


def test_csv_and_parquet_under_another_name_are_read_as_what_they_are(load) -> None:
    text = "instruction,response\n" + "".join(f"{q},{a}\n" for q, a in PAIRS)
    assert noted(load("mine.jsonl", text), "holds CSV and was read as such")
    faqs = load("mine.csv", parquet(RECORDS))
    assert pairs(faqs) == PAIRS
    assert noted(faqs, "holds Parquet and was read as such")
    assert not noted(load("mine.parquet", parquet(RECORDS)), "was read as such")


def test_a_compressed_file_is_unpacked(load) -> None:
    raw = gzip.compress("\n".join(map(json.dumps, RECORDS)).encode())
    faqs = load("mine.jsonl.gz", raw)
    assert pairs(faqs) == PAIRS
    assert noted(faqs, "gzip")
    with pytest.raises(DataError, match="cannot be unpacked.*fetch it again"):
        load("mine.jsonl.gz", raw[:30])


# What JSON texts hold


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
@pytest.mark.parametrize("escaped", [True, False])
def test_line_ends_of_unicode_inside_texts_end_no_row(load, mark, escaped) -> None:
    if not escaped and mark < " ":
        pytest.skip("JSON forbids control characters as they are")
    row = {"question": "Where?", "answer": f"Here.{mark}And there."}
    last = {"question": "Who?", "answer": "We."}
    lines = [json.dumps(each, ensure_ascii=escaped) for each in (row, last)]
    faqs = load("mine.jsonl", "\n".join(lines))
    assert list(faqs.frame.index) == [1, 2]
    assert faqs.frame["response"].iloc[0].split() == ["Here.", "And", "there."]


def test_halves_of_an_emoji_are_put_together(load) -> None:
    faqs = load("mine.jsonl", '{"question": "How?", "answer": "So \\ud83d\\ude00."}')
    assert pairs(faqs) == [("How?", "So 😀.")]
    faqs = load("mine.jsonl", '{"question": "How?", "answer": "So \\ud83d."}')
    assert noted(faqs, "lost")


@pytest.mark.parametrize(
    "written, read",
    [("5", "5"), ("5.0", "5.0"), ("1e5", "1e5"), ("true", "true"), ('"0049"', "0049")],
)
def test_numbers_stay_as_the_file_writes_them(load, written, read) -> None:
    faqs = load("mine.jsonl", f'{{"question": "How many?", "answer": {written}}}')
    assert pairs(faqs) == [("How many?", read)]


@pytest.mark.parametrize("missing", ['"answer": null', '"answer": NaN', '"other": "x"'])
def test_a_missing_answer_names_the_line(load, missing) -> None:
    lines = ['{"question": "A?", "answer": "B."}', f'{{"question": "C?", {missing}}}']
    with pytest.raises(DataError, match="mine.jsonl, row 2: expected a response"):
        load("mine.jsonl", "\n".join(lines))


def test_columns_that_appear_late_and_change_type(load) -> None:
    rows = [
        {"question": "A?", "answer": "B."},
        {"question": "C?", "answer": 5, "fact": 7, "tags": ["x", "y"]},
        {"question": "D?", "answer": "E.", "fact": "seven", "tags": {"k": 1}},
    ]
    faqs = load("mine.jsonl", rows)
    assert list(faqs.frame["response"]) == ["B.", "5", "E."]
    assert list(faqs.frame["fact"]) == ["", "7", "seven"]
    assert list(faqs.frame["tags"]) == ["", "x | y", '{"k": "1"}']


def test_an_answer_under_another_name_in_later_rows_is_pointed_to(load) -> None:
    rows = [{"question": "A?", "answer": "B."}, {"question": "C?", "output": "D."}]
    with pytest.raises(DataError, match="row 2.*may be in the column 'output'"):
        load("mine.jsonl", rows)


def test_braces_in_texts_reach_the_template(load) -> None:
    from utils.helpers import add_text

    faqs = load("mine.jsonl", [{"question": "Use {x}?", "answer": "{0} {instruction}"}])
    text = add_text(faqs.frame.iloc[0].to_dict())["text"]
    assert "Use {x}?" in text and "{0} {instruction}" in text


# JSON that cannot be read


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"question": "A?", "answer": "B."}\n{"question": "C?", "ans', r"row 2.*cut"),
        ("[\n" + '{"question": "A?", "answer": "B."},\n]', r"row 3.*comma.*delete"),
        ("{'question': 'A?', 'answer': 'B.'}", r"row 1.*Python dict.*json.dumps"),
        ('{"question": "A?", "question": "B?"}', r"'question' stands"),
        ('{"question": "A?", "answer": "B\nC"}', r"line end"),
        ('// rows\n{"question": "A?", "answer": "B"}\n{"question": "C?"}',
         r"row 1: most lines are JSON, and this one is not"),
        ('{"question": "A?", "answer": "B"},\n{"question": "C?", "answer": "D"}',
         r"row 1.*comma stands between two rows"),
        ('{"question": "A?"}\n"and so on"', r"row 2: expected an object"),
        ("[1, 2, 3]", r"row 1: expected an object"),
        ("[]", r"empty list"),
        ('{"role": "user", "content": "A?"}\n{"role": "assistant", "content": "B"}',
         r"each row is one message"),
        ('{"a": [{"x": 1}], "b": [{"x": 1}]}', r"several lists of rows, 'a', 'b'"),
        ('{"message": "Not Found", "status": "404"}', r"of a server, 'Not Found'"),
        ('{"error": "Entry not found"}', r"answer of a server"),
        ('{"text": "### Instruction: A ### Response: B"}', r"finished texts"),
        ('{"prompt": "A", "chosen": "B", "rejected": "C"}', r"rename 'chosen'"),
        ('{"question": ["A?", "B?"], "answer": ["C"]}', r"different lengths"),
        ('{"data": [{"title": "T", "paragraphs": [{"context": "C"}]}]}', r"SQuAD"),
        ('{"question": "A?", "answer": {"text": ["B"], "start": [1]}}',
         r"row 1: 'answer' holds an object.*choose"),
        ('{"question": "A?", "answer": ["B", "C"]}', r"row 1: 'answer' holds a list"),
    ],
)  # fmt: skip
def test_json_that_cannot_be_used_names_the_row_and_the_remedy(
    load, content, message
) -> None:
    with pytest.raises(DataError, match="(?s)mine.jsonl.*" + message):
        load("mine.jsonl", content)


def test_a_csv_that_begins_with_a_bracket_is_a_csv(load) -> None:
    assert pairs(load("mine.csv", "[Beta] What is it?,A store.\n")) == [
        ("[Beta] What is it?", "A store.")
    ]


# A third text


@pytest.mark.parametrize(
    "names",
    [
        ("instruction", "input", "output"),
        ("instruction", "context", "response"),
        ("question", "passage", "answer"),
        ("Question", "Notes", "Answer"),
        ("prompt", "document", "completion"),
    ],
)
def test_a_third_text_becomes_the_context_and_part_of_the_row(load, names) -> None:
    rows = [
        dict(zip(names, ("Summarise.", f"Text {i} says so.", f"Say {i}."), strict=True))
        for i in range(8)
    ]
    faqs = load("mine.jsonl", rows)
    assert len(faqs) == 8
    assert list(faqs.frame["context"]) == [f"Text {i} says so." for i in range(8)]


def test_an_empty_third_column_is_none(load) -> None:
    rows = [{"instruction": q, "input": "", "output": a} for q, a in PAIRS]
    faqs = load("mine.json", json.dumps(rows))
    assert pairs(faqs) == PAIRS
    assert "context" not in faqs.frame


def test_the_same_question_on_the_same_text_is_a_repetition(load) -> None:
    row = {"instruction": "Sum up.", "context": "A text.", "response": "So."}
    faqs = load("mine.jsonl", [row, row])
    assert len(faqs) == 1
    assert noted(faqs, "Repeated questions were left out: row 2")


def test_a_constant_instruction_beside_a_question_is_the_system_text(load) -> None:
    rows = [
        {"question": q, "instruction": "Answer briefly.", "response": a}
        for q, a in PAIRS
    ]
    faqs = load("mine.jsonl", rows)
    assert pairs(faqs) == PAIRS
    assert set(faqs.frame["system"]) == {"Answer briefly."}
    assert noted(faqs, "'instruction' is the same in every row")


def test_two_columns_that_ask_are_both_kept(load) -> None:
    rows = [
        {"instruction": f"Task number {i} is this.", "question": f"What of {i}?",
         "response": f"It is {i}."}
        for i in range(3)
    ]  # fmt: skip
    faqs = load("mine.jsonl", rows)
    assert list(faqs.frame["context"]) == [f"What of {i}?" for i in range(3)]


def test_a_column_of_texts_that_is_not_used_is_named(load) -> None:
    rows = [
        {"question": q, "answer": a, "explanation": f"A long reason for {q}"}
        for q, a in PAIRS
    ]
    assert noted(load("mine.jsonl", rows), "'explanation' (2 rows)")


@pytest.mark.parametrize("name", ["length", "labels", "label", "input_ids", "text"])
def test_a_column_with_a_name_of_the_trainers_is_renamed(load, name) -> None:
    rows = [{"question": q, "answer": a, name: "5"} for q, a in PAIRS]
    frame = load("mine.jsonl", rows).frame
    assert name not in frame.columns
    assert list(frame[f"{name} (other)"]) == ["5", "5"]


# Parquet, folders, the hub


def test_parquet_with_lists_arrays_and_nulls(load) -> None:
    rows = [
        {"question": "A?", "answers": ["B."], "fact": 1, "score": numpy.array([1, 2])},
        {"question": "C?", "answers": ["D."], "fact": None, "score": None},
    ]
    faqs = load("mine.parquet", parquet(rows))
    assert pairs(faqs) == [("A?", "B."), ("C?", "D.")]
    assert noted(faqs, "list with one text")
    assert list(faqs.frame["fact"]) == ["1.0", ""]


def test_a_parquet_file_that_is_cut_off_says_so(load) -> None:
    with pytest.raises(DataError, match="Parquet.*cut off or damaged"):
        load("mine.parquet", parquet(RECORDS)[:-20])


def test_a_folder_that_datasets_saved_is_read(tmp_path) -> None:
    datasets.Dataset.from_list(RECORDS).save_to_disk(tmp_path / "saved")
    assert pairs(load_faqs(tmp_path / "saved")) == PAIRS
    both = datasets.DatasetDict(
        {
            "test": datasets.Dataset.from_list(RECORDS[:1]),
            "train": datasets.Dataset.from_list(RECORDS),
        }
    )
    both.save_to_disk(tmp_path / "both")
    faqs = load_faqs(tmp_path / "both")
    assert pairs(faqs) == PAIRS
    assert noted(faqs, "left out were 'test'")


def test_a_folder_cloned_from_the_hub_is_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "clone" / "data"
    folder.mkdir(parents=True)
    (folder / "train-00000-of-00001.parquet").write_bytes(parquet(RECORDS))
    (folder / "test-00000-of-00001.parquet").write_bytes(parquet(RECORDS[:1]))
    assert pairs(load_faqs(tmp_path / "clone")) == PAIRS


@pytest.mark.parametrize(
    "source, called",
    [
        ("owner/questions", ("owner/questions", {})),
        ("owner/questions:easy", ("owner/questions", {"name": "easy"})),
    ],
)
def test_a_hub_id_is_loaded_as_a_data_set(monkeypatch, source, called) -> None:
    calls = []

    def load_dataset(path: str, split: str, **options):
        calls.append((path, options))
        assert split == "train"
        return datasets.Dataset.from_list(RECORDS)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert pairs(load_faqs(source)) == PAIRS
    assert calls == [called]


@pytest.mark.parametrize(
    "error, message",
    [
        (ConnectionError("Couldn't reach the Hub"), "cannot be reached.*to_parquet"),
        (ValueError('Unknown split "train". Should be one of ["test"]'), "no split"),
        (ValueError("Config name is missing. Pick one: ['a', 'b']"), "colon, such as"),
        (datasets.exceptions.DatasetNotFoundError("gated"), "HF_TOKEN"),
        (RuntimeError("Dataset scripts are no longer supported"), "give a file"),
    ],
)
def test_a_hub_id_that_cannot_be_loaded_says_why(monkeypatch, error, message) -> None:
    def load_dataset(*arguments, **options):
        raise error

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError, match="owner/questions.*" + message):
        load_faqs("owner/questions")


@pytest.mark.parametrize("path", ["data/none.csv", "none.jsonl", "data/none.xlsx"])
def test_a_missing_file_is_not_looked_for_on_the_hub(path) -> None:
    with pytest.raises(FileNotFoundError, match="COURSE_DATA"):
        load_faqs(path)


# What is no data


@pytest.mark.parametrize(
    "content, message",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
         "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html>\n<html><head><title>faq.csv at main</title></head></html>",
         "web page with the title 'faq.csv at main'"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
         "answer of a server, 'AccessDenied'.*link"),
        (b"<Error><Code>NoSuchKey</Code></Error>", "'NoSuchKey'"),
        (b"404: Not Found", "answer of a server.*check the link"),
        (b"Not Found\n", "answer of a server"),
        (b"Access Denied", "answer of a server"),
        (b"403 Forbidden\nnginx\n", "answer of a server"),
        (b"Entry not found", "answer of a server"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Excel workbook.*password"),
        (b"{\\rtf1 ...", "rich-text"),
        (b"SQLite format 3\x00", "SQLite"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["mine.csv", "mine.jsonl"])
def test_what_is_no_data_is_named(load, content, message, name) -> None:
    with pytest.raises(DataError, match="(?s)" + name + ".*" + message):
        load(name, content)


def test_a_zip_archive_says_what_is_in_it(load) -> None:
    import zipfile

    for member, message in [
        ("faq.csv", "zip archive with 'faq.csv': unpack"),
        ("word/document.xml", "Word document"),
        ("content.xml", "OpenDocument"),
    ]:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr(member, "x")
        with pytest.raises(DataError, match=message):
            load("mine.xlsx", stream.getvalue())


# CSV: delimiters, headers, quotation marks


def test_a_semicolon_file_whose_texts_hold_one_comma_each(load) -> None:
    text = "Wo parke ich, bitte?;Hinter dem Haus\nUnd wann, bitte?;Jeden Tag\n"
    faqs = load("mine.csv", text)
    assert pairs(faqs)[0] == ("Wo parke ich, bitte?", "Hinter dem Haus")


def test_two_readings_that_nothing_decides_between_are_both_named(load) -> None:
    text = "Parken, bitte;Hinter dem Haus\nBezahlen, bitte;An der Kasse\n"
    with pytest.raises(DataError, match=r"row 1.*comma.*semicolon.*first row"):
        load("mine.csv", text)
    faqs = load("mine.csv", "question;answer\n" + text)
    assert pairs(faqs)[0] == ("Parken, bitte", "Hinter dem Haus")


def test_semicolons_in_the_answers_of_a_comma_file(load) -> None:
    text = "Where do I park?,Behind; never before.\nAnd when?,Daily; not at night.\n"
    assert pairs(load("mine.csv", text))[0] == (
        "Where do I park?",
        "Behind; never before.",
    )


def test_a_first_column_of_classes_is_no_question(load) -> None:
    rows = [f"parking,Where do I park car {i}?" for i in range(6)]
    with pytest.raises(DataError, match="1 different texts in 6 rows.*first row"):
        load("mine.csv", "\n".join(rows))


def test_answers_before_questions_without_header_are_not_guessed_at(load) -> None:
    text = "Behind the house.,Where do I park?\nDaily from nine.,And when is that?\n"
    with pytest.raises(DataError, match="second column asks"):
        load("mine.csv", text)


@pytest.mark.parametrize(
    "title", ["FAQ of our team", "FAQ of our team\n\nas of May", "List,\n,"]
)
def test_a_title_above_the_header_is_left_out(load, title) -> None:
    text = f"{title}\nquestion,answer\n" + "".join(f"{q},{a}\n" for q, a in PAIRS)
    faqs = load("mine.csv", text)
    assert pairs(faqs) == PAIRS
    assert noted(faqs, "what is above it was left out")


SWALLOWED = (
    "question,answer\n"
    'What is a store?,"A place.\n'
    "Where is it?,Behind the house.\n"
    "When is it open?,From nine to five.\n"
    'Who runs it?,"A team of two."\n'
    "And why?,Because we need it.\n"
)


def test_an_unclosed_quotation_mark_that_swallows_rows_is_found(load) -> None:
    with pytest.raises(DataError, match="row 2.*looks like a row.*Where is it"):
        load("mine.csv", SWALLOWED)
    with pytest.raises(DataError, match="row 2.*looks like a row"):
        load("mine.csv", SWALLOWED.replace(",", ";"))


@pytest.mark.parametrize(
    "answer",
    [
        "First, open it.\nThen, close it.\nLast, lock the door.",
        "def f(a,b):\n    return g(a,b)",
        "a,b,c\n1,2,3\n4,5,6",
        "Costs are 1,000 or\nin all 2,000 a year.",
        "Dear team,\n\nas asked, here it is,\nyours",
    ],
)
def test_an_answer_of_several_lines_is_no_swallowed_row(load, answer) -> None:
    faqs = load("mine.csv", f'question,answer\nHow so?,"{answer}"\nWho?,We.\n')
    assert pairs(faqs)[0][1].splitlines()[0] == answer.splitlines()[0]
    assert len(faqs) == 2


# What counts as the same question


@pytest.mark.parametrize(
    "questions, kept",
    [
        (["What is C?", "What is C++?", "What is C#?"], 3),
        (["什么是存储？", "什么是终端？", "什么是存储"], 2),
        (["Что это?", "Где это?", "что  это"], 2),
        (["ما هو؟", "من هو؟"], 2),
        (["यह क्या है?", "वह क्या है?"], 2),
        (["Is it 1.5?", "Is it 15?", "Is it -15?"], 3),
        (["What's new?", "What’s new?", "WHAT'S NEW"], 1),
        (["multi-model endpoint?", "Multi model endpoint"], 1),
        (["?", "!", "?"], 2),
        (["What is a < b?", "What is a > b?"], 2),
        (["What does $HOME do?", "What does %HOME do?"], 2),
        (["x = 1?", "x == 1?"], 2),
    ],
)
def test_the_same_question_in_any_script(load, questions, kept) -> None:
    rows = [
        {"question": question, "answer": f"Answer {place}."}
        for place, question in enumerate(questions)
    ]
    faqs = load("mine.jsonl", rows)
    assert len(faqs) == kept
    assert len(faqs.differing) == len(questions) - kept
