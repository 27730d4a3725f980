"""The format task: strict answers, scores, prompts, and every row of its data."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter

import pandas
import pytest
from jsonschema import Draft202012Validator

from utils.course import ROOT
from utils.dataset.faqs import DataError
from utils.evaluation.json_format import (
    BEST_INSTRUCTION,
    COLUMNS,
    FAULTS,
    FIELDS,
    FORMAT_INSTRUCTION,
    MESSAGES_DATA,
    PARTS,
    SCHEMA,
    TOPICS,
    URGENCIES,
    FormatAnswerError,
    answer_fault,
    best_messages,
    best_prompt,
    candidates,
    choose_examples,
    few_shot_messages,
    format_scores,
    load_messages,
    message_parts,
    parse_answer,
    target_json,
    training_rows,
    tuned_prompt,
)

ROW = {"topic": "data", "urgency": "low", "resource": "s3://a/b/"}
RIGHT = target_json(**ROW)
SECOND_LABELS = ROOT / "tests" / "data" / "second_labels.csv"


@pytest.fixture(scope="module")
def messages() -> pandas.DataFrame:
    return load_messages()


# --- strict answers -------------------------------------------------------------------

NOT_STRICT = {
    "empty": "",
    "blank": " \n",
    "prose": "The topic is data.",
    "text after": RIGHT + "\nI hope that helps!",
    "full stop": RIGHT + ".",
    "text before": "Sure! " + RIGHT,
    "two objects": RIGHT + "\n" + RIGHT,
    "code fence": f"```json\n{RIGHT}\n```",
    "bare fence": f"```\n{RIGHT}\n```",
    "single quotes": RIGHT.replace('"', "'"),
    "no quotes": "{topic: data, urgency: low, resource: s3://a/b/}",
    "comma at the end": RIGHT.replace("}", ",}"),
    "cut off": RIGHT[:-8],
    "comment": RIGHT.replace("}", "} // done"),
    "repeated key": RIGHT.replace("}", ', "topic": "data"}'),
    "other repeated key": RIGHT.replace("}", ', "topic": "billing"}'),
    "NaN": '{"topic": NaN, "urgency": "low", "resource": "x"}',
    "Infinity": '{"topic": "data", "urgency": "low", "resource": -Infinity}',
    "Python": '{"topic": None, "urgency": "low", "resource": "x"}',
    "raw line end in a string": RIGHT.replace("a/b", "a\nb"),
    "no-break space before": "\u00a0" + RIGHT,
    "byte-order mark": "\ufeff" + RIGHT,
    "typographic quotes": RIGHT.replace('"', "\u201d"),
    "list": f"[{RIGHT}]",
    "string": json.dumps(RIGHT),
    "number": "7",
    "null": "null",
    "very deep": "[" * 200_000,
    "very deep object": '{"topic":' * 200_000,
    "a number without end": '{"topic": ' + "9" * 5000 + "}",
}
ANOTHER_SHAPE = {
    "missing key": '{"topic": "data", "urgency": "low"}',
    "extra key": RIGHT.replace("}", ', "reason": "says so"}'),
    "unknown topic": RIGHT.replace('"data"', '"storage"'),
    "capital letter": RIGHT.replace('"low"', '"Low"'),
    "space in a value": RIGHT.replace('"low"', '"low "'),
    "key in capitals": RIGHT.replace('"topic"', '"Topic"'),
    "number": RIGHT.replace('"s3://a/b/"', "4"),
    "truth value": RIGHT.replace('"low"', "true"),
    "null": RIGHT.replace('"s3://a/b/"', "null"),
    "list": RIGHT.replace('"s3://a/b/"', '["s3://a/b/"]'),
    "empty resource": RIGHT.replace("s3://a/b/", ""),
    "nested": f'{{"answer": {RIGHT}}}',
    "empty object": "{}",
}


@pytest.mark.parametrize("text", NOT_STRICT.values(), ids=NOT_STRICT)
def test_what_is_not_one_json_object_alone_is_nothing(text: str) -> None:
    assert parse_answer(text) is None
    scores = format_scores([text], [ROW])
    assert not scores.to_numpy().any()
    assert answer_fault(text) in FAULTS


@pytest.mark.parametrize("text", ANOTHER_SHAPE.values(), ids=ANOTHER_SHAPE)
def test_json_that_breaks_the_schema_is_not_valid(text: str) -> None:
    assert parse_answer(text) == json.loads(text)
    scores = format_scores([text], [ROW]).iloc[0]
    assert not scores["valid"]
    assert not scores["exact"]
    assert answer_fault(text) == "another shape"


@pytest.mark.parametrize(
    "text",
    [
        RIGHT,
        f" {RIGHT}\n",
        json.dumps(ROW, indent=2),
        json.dumps(ROW, separators=(",", ":")),
        json.dumps(dict(reversed(ROW.items()))),
        RIGHT.replace("s3:", "s3\\u003a"),
    ],
    ids=["as trained", "blanks around", "indented", "compact", "order", "escapes"],
)
def test_any_spelling_of_the_right_object_is_exact(text: str) -> None:
    assert parse_answer(text) == ROW
    assert format_scores([text], [ROW]).to_numpy().all()
    assert answer_fault(text) == ""


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("empty", "empty"),
        ("blank", "empty"),
        ("code fence", "code fence"),
        ("text after", "text around the JSON"),
        ("text before", "text around the JSON"),
        ("two objects", "text around the JSON"),
        ("single quotes", "no strict JSON"),
        ("repeated key", "no strict JSON"),
        ("NaN", "no strict JSON"),
        ("cut off", "no strict JSON"),
        ("prose", "no strict JSON"),
        ("list", "text around the JSON"),
        ("number", "another shape"),
    ],
)
def test_faults_are_told_apart(name: str, fault: str) -> None:
    assert answer_fault(NOT_STRICT[name]) == fault


def test_umlauts_are_written_as_they_are() -> None:
    text = target_json("data", "low", "März.xlsx")
    assert text == '{"topic": "data", "urgency": "low", "resource": "März.xlsx"}'
    assert parse_answer(text)["resource"] == "März.xlsx"


# --- scores ---------------------------------------------------------------------------


def test_each_field_has_its_column() -> None:
    answers = [
        RIGHT,
        RIGHT.replace("data", "billing"),
        RIGHT.replace("low", "high"),
        RIGHT.replace("s3://a/b/", "s3://a/b"),
        RIGHT.replace("}", ', "more": 1}'),
        "no idea",
    ]
    scores = format_scores(answers, [ROW] * 6)
    assert list(scores.columns) == ["valid", "exact", *FIELDS]
    assert scores.to_numpy().tolist() == [
        [True, True, True, True, True],
        [True, False, False, True, True],
        [True, False, True, False, True],
        [True, False, True, True, False],
        [False, False, True, True, True],  # three right fields and one too many
        [False, False, False, False, False],
    ]
    assert all(pandas.api.types.is_bool_dtype(kind) for kind in scores.dtypes)
    assert scores["valid"].mean() == pytest.approx(4 / 6)


@pytest.mark.parametrize("change", ["S3://A/B/", "s3://a/b/ ", "s3://a/b/."])
def test_a_resource_counts_only_character_by_character(change: str) -> None:
    answer = target_json("data", "low", change)
    assert not format_scores([answer], [ROW])["resource"][0]


def test_scores_take_a_table_too(messages) -> None:
    scores = format_scores(list(messages["response"]), messages)
    assert len(scores) == len(messages)
    assert scores.to_numpy().all()


def test_answers_and_rows_must_fit() -> None:
    with pytest.raises(FormatAnswerError, match="1 answers for 2 rows"):
        format_scores([RIGHT], [ROW, ROW])
    with pytest.raises(FormatAnswerError, match="at least one"):
        format_scores([], [])
    with pytest.raises(FormatAnswerError, match="Answer 2 is None"):
        format_scores([RIGHT, None], [ROW, ROW])
    with pytest.raises(FormatAnswerError, match="Row 1 has no urgency"):
        format_scores([RIGHT], [{"topic": "data", "resource": "x"}])


# --- prompts --------------------------------------------------------------------------


def test_candidates_are_chats_that_end_with_the_message(messages) -> None:
    made = candidates(messages)
    assert len(made) >= 4
    for name, turns in made.items():
        chat = turns("Where is x?")
        assert chat[-1]["role"] == "user" and "Where is x?" in chat[-1]["content"]
        answers = [turn["content"] for turn in chat if turn["role"] == "assistant"]
        assert all(parse_answer(answer) for answer in answers), name
        assert not answers or len(answers) in (6, 12)
        rules = chat[0]["content"]
        assert all(word in rules for word in (*TOPICS, *URGENCIES, *FIELDS)), name
    test = messages[messages["part"] == "test"]["instruction"]
    everything = str([turns("") for turns in made.values()])
    assert not any(message in everything for message in test)


def test_the_best_prompt_holds_schema_rules_and_examples(messages) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert json.dumps(SCHEMA) in BEST_INSTRUCTION
    assert all(word in BEST_INSTRUCTION for word in (*TOPICS, *URGENCIES, *FIELDS))
    examples = few_shot_messages(messages, 6)
    chat = best_messages("Where is x?", examples)
    assert [turn["role"] for turn in chat] == [
        "system",
        *["user", "assistant"] * 6,
        "user",
    ]
    assert chat[-1]["content"] == "Where is x?"
    text = best_prompt("Where is x?", examples)
    assert text.startswith(BEST_INSTRUCTION)
    assert text.endswith("Message: Where is x?\nJSON:")
    assert all(turn["content"] in text for turn in examples)
    assert best_messages("Why?") == [chat[0], {"role": "user", "content": "Why?"}]


def test_examples_come_from_the_train_part_only(messages) -> None:
    train = set(messages.loc[messages["part"] == "train", "instruction"])
    for seed in range(5):
        chosen = choose_examples(messages, 18, seed)
        texts = [row["instruction"] for row in chosen]
        assert len(set(texts)) == 18
        assert set(texts) <= train
        assert set(Counter(row["topic"] for row in chosen).values()) == {3}
        assert set(Counter(row["urgency"] for row in chosen).values()) == {6}
    six = choose_examples(messages, 6)
    assert len({row["topic"] for row in six}) == 6
    assert set(Counter(row["urgency"] for row in six).values()) == {2}


def test_the_seed_decides_the_examples(messages) -> None:
    assert few_shot_messages(messages, 4, 1) == few_shot_messages(messages, 4, 1)
    assert few_shot_messages(messages, 4, 1) != few_shot_messages(messages, 4, 2)
    assert few_shot_messages(messages, 0) == []


def test_all_train_rows_can_be_examples_and_no_more(messages) -> None:
    few = messages[messages["topic"] == "data"]
    n_train = int((few["part"] == "train").sum())
    assert len(choose_examples(few, n_train)) == n_train
    with pytest.raises(FormatAnswerError, match=f"{n_train + 1} examples"):
        choose_examples(few, n_train + 1)
    with pytest.raises(FormatAnswerError, match="of 0 rows"):
        few_shot_messages(messages[messages["part"] == "test"], 1)


def test_training_rows_carry_the_short_instruction(messages) -> None:
    rows = training_rows(messages.head(3))
    assert [row["response"] for row in rows] == list(messages["response"][:3])
    for row, message in zip(rows, messages["instruction"], strict=False):
        assert row["instruction"] == tuned_prompt(message)
        assert row["instruction"].startswith(FORMAT_INSTRUCTION)
        assert row["instruction"].endswith(message)


# --- the data -------------------------------------------------------------------------


def test_every_row_is_valid_and_its_resource_is_copied(messages) -> None:
    validator = Draft202012Validator(SCHEMA)
    for row in messages.to_dict("records"):
        answer = parse_answer(row["response"])
        validator.validate(answer)
        assert list(answer) == list(FIELDS)
        assert answer == {name: row[name] for name in FIELDS}
        assert row["response"] == json.dumps(answer, ensure_ascii=False)
        assert row["instruction"].count(row["resource"]) == 1
        assert row["resource"] == row["resource"].strip()
        # The name ends where a name ends: no letter or digit goes on.
        start = row["instruction"].index(row["resource"])
        around = row["instruction"][start - 1 : start] + "".join(
            row["instruction"][start + len(row["resource"]) :][:1]
        )
        assert not re.search(r"\w", around), row["instruction"]


def test_parts_and_balance(messages) -> None:
    assert len(messages) == 1800
    assert dict(Counter(messages["part"])) == {
        "train": 1200,
        "validation": 200,
        "test": 400,
    }
    pairs = Counter(zip(messages["topic"], messages["urgency"], strict=True))
    assert len(pairs) == 18
    assert set(pairs.values()) == {100}
    bounds = (("train", 66, 67), ("validation", 11, 12), ("test", 22, 23))
    for part, low, high in bounds:
        inside = messages[messages["part"] == part]
        counts = Counter(zip(inside["topic"], inside["urgency"], strict=True))
        assert len(counts) == 18
        assert low <= min(counts.values()) <= max(counts.values()) <= high


def test_parts_follow_the_rule_in_any_order(messages) -> None:
    rows = messages.to_dict("records")
    assert message_parts(rows) == list(messages["part"])
    assert message_parts(rows[::-1]) == list(messages["part"])[::-1]


def test_messages_are_short_natural_and_private(messages) -> None:
    lengths = messages["instruction"].str.split().str.len()
    assert lengths.min() >= 10
    assert lengths.max() <= 60
    assert (lengths <= 15).sum() >= 40
    assert (lengths >= 42).sum() >= 40
    for text in messages["instruction"]:
        assert not re.search(r"\S@\S+\.\w", text), f"an e-mail address? {text}"
        assert not re.search(r"\+\d[\d ]{5,}|(?<![\w-])0\d{6,}", text), (
            f"a telephone number? {text}"
        )
        assert not re.search(r"\bAKIA|\bsk-|\bhf_\w{9}|\b\d{12}\b", text), text
        assert not re.search(r"https?://", text)
        assert text == text.strip()


def test_no_name_is_asked_for_twice(messages) -> None:
    assert messages["resource"].str.lower().is_unique
    for row in messages.to_dict("records"):
        for name in messages["resource"]:
            assert name == row["resource"] or name not in row["instruction"]


def bare(row: dict[str, str]) -> set[str]:
    """Return the runs of three words in a message, without its resource."""
    text = row["instruction"].replace(row["resource"], " ").lower()
    words = re.findall(r"\w+", text)
    return {" ".join(words[i : i + 3]) for i in range(len(words) - 2)}


def test_no_message_is_nearly_another(messages) -> None:
    """No template and no near-duplicate, within the parts as well as across them."""
    runs = [bare(row) for row in messages.to_dict("records")]
    for i, one in enumerate(runs):
        for j in range(i):
            shared = len(one & runs[j]) / min(len(one), len(runs[j]))
            assert shared < 0.4, (
                messages["instruction"].iloc[i],
                messages["instruction"].iloc[j],
            )


def test_openings_vary(messages) -> None:
    openings = Counter(
        " ".join(row["instruction"].replace(row["resource"], "X").lower().split()[:3])
        for row in messages.to_dict("records")
    )
    assert openings.most_common(1)[0][1] <= len(messages) / 250


def test_neither_place_nor_style_gives_the_resource_away(messages) -> None:
    first = sum(
        row["instruction"].split()[0].strip('".,:') == row["resource"]
        for row in messages.to_dict("records")
    )
    assert first < len(messages) / 10
    names = messages["resource"]
    assert names.str.contains("_").mean() > 0.15
    assert names.str.contains("-").mean() > 0.25
    assert names.str.startswith("s3://").sum() >= 20
    assert names.str.contains(r"[A-Z]").mean() > 0.1
    assert names.str.endswith(".ipynb").sum() >= 20
    assert names.str.contains(r"[^\x00-\x7f]").any()
    assert names.str.contains(" ").any()


def test_a_second_reader_gives_the_test_messages_the_same_labels(messages) -> None:
    """Labelled again from the rules in data/README.md, the first labels unseen."""
    second = pandas.read_csv(SECOND_LABELS, index_col="row", keep_default_na=False)
    test = messages[messages["part"] == "test"]
    assert set(second.index) == set(test.index)
    same = second.loc[test.index] == test[list(FIELDS)]
    assert list(same.sum()) == [400, 400, 397]


@pytest.mark.slow
def test_simple_methods_reach_what_is_said_of_them() -> None:
    """In data/README.md and in lesson 05."""
    from benchmarks import bench_format

    table = bench_format.measured()
    assert [f"{table[1200][name]:.0%}" for name in ("topic", "urgency")] == ["94%"] * 2
    assert f"{table[1200]['resource']:.0%}" == "81%"
    assert f"{table[1200]['all three']:.0%}" == "71%"
    assert f"{table[240]['all three']:.0%}" == "55%"


# --- loading --------------------------------------------------------------------------

GOOD = {
    "instruction": "Please look at s3://a/b/ some day, it is empty.",
    "response": RIGHT,
    **ROW,
    "part": "train",
}


def write(path, rows) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_file_of_ones_own_is_read(tmp_path) -> None:
    none = "None opens NA twice, whatever I do about it, no hurry"
    second = {
        "instruction": none,
        "response": target_json("data", "low", "NA"),
        "topic": "data",
        "urgency": "low",
        "resource": "NA",
        "part": "test",
    }
    write(tmp_path / "own.csv", [GOOD, second])
    frame = load_messages(tmp_path / "own.csv")
    assert frame.index.tolist() == [2, 3]
    assert frame["resource"].tolist() == ["s3://a/b/", "NA"]
    text = (tmp_path / "own.csv").read_text(encoding="utf-8")
    (tmp_path / "bom.csv").write_text(text, encoding="utf-8-sig")
    assert load_messages(tmp_path / "bom.csv").equals(frame)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction": " "}, "row 3: the message .* is empty. Write it"),
        ({"topic": "storage"}, "row 3: topic is 'storage'. Write one of training, "),
        ({"urgency": ""}, "row 3: urgency is ''. Write one of low, normal, high"),
        ({"part": "dev"}, "row 3: part is 'dev'. Write one of train, valid"),
        ({"resource": "s3://b/"}, "'s3://b/' stands 0 times .* Copy it"),
        ({"resource": ""}, "'' stands 0 times"),
        ({"resource": "a"}, "'a' stands 4 times"),
        (
            {"response": RIGHT.replace(" ", "")},
            "row 3: the response .* Make them agree",
        ),
        ({"response": "{}"}, "row 3: the response is '{}'"),
        ({}, "row 3: the message of row 2 stands here again. Remove one"),
    ],
)
def test_a_bad_row_is_named_with_its_remedy(tmp_path, change, message) -> None:
    file = tmp_path / "own.csv"
    write(file, [GOOD, {**GOOD, **change}])
    with pytest.raises(DataError, match=message) as caught:
        load_messages(file)
    assert str(caught.value).startswith("own.csv, row 3: ")


def test_a_file_that_is_no_such_table_is_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.csv: restore"):
        load_messages(tmp_path / "none.csv")
    lacking = {name: GOOD[name] for name in COLUMNS if name != "part"}
    write(tmp_path / "lacking.csv", [lacking])
    with pytest.raises(DataError, match=r"lacking\.csv has no column part"):
        load_messages(tmp_path / "lacking.csv")
    (tmp_path / "headed.csv").write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(DataError, match="has no rows"):
        load_messages(tmp_path / "headed.csv")
    (tmp_path / "blank.csv").write_text("")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        load_messages(tmp_path / "blank.csv")
    (tmp_path / "latin.csv").write_bytes("ä,ö\nü,ß\n".encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read as CSV in UTF-8"):
        load_messages(tmp_path / "latin.csv")


def test_the_shipped_file_is_plain() -> None:
    raw = MESSAGES_DATA.read_bytes()
    assert not raw.startswith(b"\xef\xbb\xbf")
    assert b"\r" not in raw
    assert raw.decode("utf-8").splitlines()[0] == ",".join(COLUMNS)
    assert PARTS == ("train", "validation", "test")
