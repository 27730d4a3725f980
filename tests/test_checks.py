"""The report: each kind of trouble with its rows, and none in a sound file."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pandas
import pytest

from utils.course import LAB_DATA, ROOT
from utils.dataset.__main__ import main
from utils.dataset.checks import check
from utils.dataset.faqs import Faqs, load_faqs
from utils.encoder import load_encoder
from utils.models import load_tokenizer, settings_for
from utils.templates import template_for

SOUND = [
    ("Where do I park?", "Park in the yard behind building C."),
    ("Who approves travel?", "Your team lead approves travel."),
    ("How long are backups kept?", "Backups are kept for ninety days."),
    ("Which port does the server use?", "The server listens on port 8080."),
    ("When are invoices paid?", "Invoices are paid within thirty days."),
    ("How much may a hotel cost?", "A hotel may cost up to 180 euros a night."),
    ("When do I plant tomatoes?", "Plant tomatoes after the last frost, in May."),
    ("Which printer is next to the kitchen?", "The printer next to it is Heron."),
    ("How do I install the VPN?", "Choose Corvus VPN in the software centre."),
    ("When are roses pruned?", "Prune roses when the forsythia blooms."),
    ("Who has the key of the cellar?", "The porter has the key of the cellar."),
    ("What does the red lamp mean?", "The red lamp means that the oven is hot."),
]
FIRST = len(SOUND) + 2  # the row of what a test adds


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.fixture
def report_on(encoder):
    """Check the sound rows and some more, of which "group" may be given."""

    def report_on(*more: tuple[str, str], **options):
        rows = [*SOUND, *more]
        frame = pandas.DataFrame(
            rows, columns=["instruction", "response"], index=range(2, len(rows) + 2)
        )
        return check(Faqs(frame), encoder=encoder, **options)

    return report_on


def kinds(report) -> list[str]:
    return [finding.kind for finding in report.findings]


def test_a_sound_file_has_nothing_to_look_at(report_on) -> None:
    report = report_on()
    assert report.findings == [] and report.exit_code == 0
    assert sum(report.parts.values()) == len(SOUND)
    assert "Nothing." in str(report)


def test_a_small_file_says_how_much_one_question_weighs(report_on) -> None:
    report = report_on()
    tested = report.parts["test"]
    assert f"test with ({tested}): each one moves" in str(report)
    assert f"by {1 / tested:.0%}." in str(report)
    many = dataclasses.replace(report, parts={"train": 400, "test": 30})
    assert "Few questions" not in str(many)
    one = dataclasses.replace(report, parts={"train": 9, "test": 1})
    assert "answers by 100%." in str(one)


@pytest.mark.parametrize(
    "question, answer, kind",
    [
        ("How do I reach you?", "Mail jane@corvus.no to reach us.", "e-mail addresses"),
        ("Who helps at night?", "Call +1 415 555 2671 at night.", "phone numbers"),
        ("Which key do I use?", "Use AKIAIOSFODNN7ABCDEFG as the key.", "keys"),
        ("Is the lift broken?", "Yes, it is.", "answers that need the question"),
        ("And the second lift?", "See above.", "answers that need the question"),
        ("What is the best fruit?", "Apple pie", "answers too short"),
        ("What ends a turn?", "The mark <|im_end|> ends a turn.", "template marks"),
        ("What comes first?", "It says ### Response: at the start of it, you know.",
         "template marks"),
        ("Wo ist der Schlüssel für den Keller?",
         "Der Schlüssel für den Keller liegt beim Pförtner.", "other languages"),
        ("Где лежит ключ?", "Ключ лежит у вахтёра на первом этаже.", "other languages"),
        ("What is the plan?", "TBD", "leftovers"),
        ("What is R&amp;D?", "Research &amp; development is R&amp;D.", "leftovers"),
        ("How long are the backups kept?", "Backups are kept for 30 days.",
         "contradicting answers"),
    ],
)  # fmt: skip
def test_each_kind_is_found_with_its_row(report_on, question, answer, kind) -> None:
    report = report_on((question, answer))
    assert kind in kinds(report)
    (finding,) = report.of(kind)
    if kind == "leftovers":
        assert f"row {FIRST}" in finding.sentence
    elif kind == "contradicting answers":
        assert finding.rows == (4, FIRST)
    else:
        assert finding.rows == (FIRST,)
    assert report.exit_code == 1
    assert f"row{'s' * (kind.startswith('contra'))} " in str(report)


def test_a_repeated_question_with_another_answer_is_a_contradiction(
    tmp_path, encoder
) -> None:
    path = tmp_path / "mine.csv"
    rows = [*SOUND, ("where do i park", "Park in the garage.")]
    lines = "".join(f'"{q}","{a}"\n' for q, a in rows)
    path.write_text("question,answer\n" + lines, encoding="utf-8")
    report = check(load_faqs(path), encoder=encoder)
    assert report.of("contradicting answers")[0].rows == (2, FIRST)


def test_the_same_question_on_other_notes_is_no_contradiction(encoder) -> None:
    frame = pandas.DataFrame(SOUND, columns=["instruction", "response"])
    frame["instruction"] = "What does the note say?"
    frame["context"] = [f"Note {i}: {answer}" for i, (_, answer) in enumerate(SOUND)]
    report = check(Faqs(frame), encoder=encoder)
    assert not report.of("contradicting answers")
    assert not report.of("leaks between parts")


def test_rows_over_the_limit_are_named_with_it(report_on) -> None:
    settings = settings_for("lab")
    template = template_for(settings, load_tokenizer(settings))
    report = report_on(
        ("Why?", "Because the house is old. " * 100),
        template=template,
        max_length=256,
    )
    (finding,) = report.of("answers too long")
    assert finding.rows == (FIRST,)
    assert "limit is 256" in finding.sentence and "max_length" in finding.sentence


def test_a_group_column_that_parts_paraphrases_is_told(encoder) -> None:
    rows = [*SOUND * 4]
    frame = pandas.DataFrame(rows, columns=["instruction", "response"])
    frame["instruction"] = [
        f"{question[:-1]} {'please, ' * (place // len(SOUND))}?"
        for place, (question, _) in enumerate(rows)
    ]
    # Each wording has a group of its own, with a question on something else.
    frame["group"] = [f"group {place // 2}" for place in range(len(rows))]
    report = check(Faqs(frame), encoder=encoder)
    assert report.of("leaks between parts")
    frame["group"] = [f"group {place % len(SOUND)}" for place in range(len(rows))]
    assert not check(Faqs(frame), encoder=encoder).of("leaks between parts")


def test_classes_are_not_too_short(encoder) -> None:
    frame = pandas.DataFrame(SOUND, columns=["instruction", "response"])
    frame["response"] = ["yes", "no"] * 6
    report = check(Faqs(frame), encoder=encoder)
    assert not report.of("answers too short")
    assert not report.of("answers that need the question")


def test_a_file_in_two_languages_is_no_exception(encoder) -> None:
    german = [
        ("Wo darf ich mein Auto parken?", "Im Hof hinter dem Gebäude C."),
        ("Wer genehmigt eine Dienstreise?", "Die Teamleitung genehmigt Reisen."),
        ("Wie lange werden Sicherungen behalten?", "Sicherungen bleiben drei Monate."),
        ("Wann werden Rechnungen bezahlt?", "Innerhalb von dreißig Tagen."),
        ("Wann schneidet man Rosen?", "Rosen schneidet man, wenn die Forsythie blüht."),
    ]
    frame = pandas.DataFrame(SOUND + german, columns=["instruction", "response"])
    assert not check(Faqs(frame), encoder=encoder).of("other languages")


def test_many_rows_are_checked_by_letters(monkeypatch) -> None:
    monkeypatch.setattr("utils.dataset.groups.MOST_EMBEDDED", 10)
    monkeypatch.setattr("utils.dataset.checks.MOST_EMBEDDED", 10)
    rows = [*SOUND, ("How long are the backups kept?", "Backups are kept 30 days.")]
    frame = pandas.DataFrame(rows, columns=["instruction", "response"])
    report = check(Faqs(frame))
    assert report.of("contradicting answers")[0].rows == (2, 12)
    assert any("likeness is one of letters" in note for note in report.notes)


def test_too_few_rows_are_told_and_the_rest_is_checked(encoder) -> None:
    frame = pandas.DataFrame(
        [("Who?", "Mail a@corvus.no.")], columns=["instruction", "response"]
    )
    assert kinds(check(Faqs(frame), encoder=encoder)) == [
        "too few rows",
        "e-mail addresses",
        "answers too short",
    ]


def test_the_report_in_a_notebook_escapes_marks(report_on) -> None:
    text = report_on(("What ends it?", "The mark <|im_end|> ends it."))
    assert "<|" not in text._repr_markdown_()
    assert "&lt;&#124;im_end" in text._repr_markdown_()


# The command


@pytest.fixture
def sound_file(tmp_path):
    def write(*more: tuple[str, str]):
        rows = [{"question": q, "answer": a} for q, a in [*SOUND, *more]]
        path = tmp_path / "mine.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return path

    return write


def test_the_command_prints_the_report(sound_file, capsys) -> None:
    assert main(["check", str(sound_file())]) == 0
    assert "12 pairs of question and answer, 0 things" in capsys.readouterr().out
    path = sound_file(("Who?", "Mail jane@corvus.no today."))
    assert main(["check", str(path)]) == 1
    assert "e-mail addresses: " in capsys.readouterr().out


def test_the_command_says_why_a_file_is_unusable(tmp_path, capsys) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes("вопрос,ответ\nКак дела сегодня?,Хорошо.\n".encode("cp1251"))
    assert main(["check", str(path)]) == 2
    assert "--encoding" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "none.csv")]) == 2
    assert "There is no file" in capsys.readouterr().err
    assert main(["check", str(path), "--encoding", "klingon"]) == 2


def test_the_command_names_the_encoding(tmp_path, capsys) -> None:
    path = tmp_path / "mine.csv"
    rows = "".join(f"Где ключ номер {i}?,У вахтёра номер {i}.\n" for i in range(12))
    path.write_bytes(f"question,answer\n{rows}".encode("cp1251"))
    assert main(["check", str(path), "--encoding", "cp1251"]) in (0, 1)
    assert "12 pairs" in capsys.readouterr().out


def test_the_command_runs_as_a_module(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "utils.dataset", "check", str(tmp_path / "none.csv")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert "There is no file" in done.stderr


def test_the_labs_own_file_has_no_personal_data_and_no_contradiction(encoder) -> None:
    report = check(load_faqs(LAB_DATA), encoder=_Cheap())
    found = set(kinds(report))
    assert not found & {"keys", "e-mail addresses", "phone numbers", "template marks"}
    assert "other languages" not in found


class _Cheap:
    """Vectors that are all unlike: what is compared word by word stays."""

    def embed(self, texts):
        import numpy

        generator = numpy.random.default_rng(0)
        vectors = generator.normal(size=(len(texts), 64)).astype("float32")
        return vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)
