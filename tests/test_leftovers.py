"""What spreadsheets, web pages and programs leave in texts gets a note."""

from __future__ import annotations

import pandas
import pytest

from utils.dataset.leftovers import leftover_notes

CLEAN = [
    "It is a store.",
    "AT&T and R&D use it; 5 < 6 and 7 > 6.",
    "See <your-bucket> and List<int>.",
    "Rows are in C:\\new\\names, pattern \\n is a line end.",
    "It is not available (N/A) on Sundays.",
    "The list [1, 2] and {'a': 1} are Python.",
    "#channel and C#",
    "42",
    "No",
    "{name} is filled in.",
]


def notes_on(*answers: str) -> list[str]:
    frame = pandas.DataFrame(
        {
            "instruction": [f"Question {i}?" for i in range(len(answers))],
            "response": answers,
        },
        index=range(2, len(answers) + 2),
    )
    return leftover_notes(frame)


@pytest.mark.parametrize(
    "answer, sentence",
    [
        ("One._x000D_\nTwo.", "_x000D_"),
        ("#NAME?", "error of the spreadsheet"),
        ("#DIV/0!", "error of the spreadsheet"),
        ("Research &amp; more", "HTML entities"),
        ("It&#39;s so", "HTML entities"),
        ("First.<br/>Second.", "HTML tags"),
        ("<p>Yes, so it is.</p>", "HTML tags"),
        ('<a href="x">here</a>', "HTML tags"),
        ("First.\\nSecond.", "Line ends are written"),
        ("N/A", "kept as text"),
        ("n.a.", "kept as text"),
        ("-", "kept as text"),
        ("TBD", "kept as text"),
        ("nan", "kept as text"),
        ("x" * 32_767, "32,767"),
        ("{'text': ['green'], 'answer_start': [5]}", "printed Python"),
        ("['green', 'Green']", "printed Python"),
        ("['green' 'Green']", "printed Python"),
        ("[]", "printed Python"),
    ],
)
def test_each_kind_gets_one_note_with_its_rows(answer, sentence) -> None:
    notes = notes_on("It is a store.", answer, "Fine.", answer)
    assert len(notes) == 1
    assert sentence in notes[0]
    assert notes[0].endswith("rows 3, 5.")


@pytest.mark.parametrize("answer", CLEAN)
def test_what_only_looks_like_it_gets_none(answer) -> None:
    assert notes_on(answer) == []
