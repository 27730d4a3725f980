"""Excel workbooks are read as a person sees them."""

from __future__ import annotations

import datetime

import openpyxl
import pytest

from utils.dataset.faqs import Faqs, load_faqs
from utils.dataset.sheets import shown
from utils.dataset.table import DataError

PAIRS = [
    ("What is it?", "A store of things."),
    ("Who uses it?", "Teams that train models."),
    ("Where is it?", "In the cellar, to the left."),
]


@pytest.fixture
def book(tmp_path):
    """A workbook with one sheet, and a function that saves and loads it."""
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    sheet.title = "FAQ"

    def load(name: str = "mine.xlsx") -> Faqs:
        workbook.save(tmp_path / name)
        return load_faqs(tmp_path / name)

    return workbook, sheet, load


def fill(sheet, *rows) -> None:
    for row in rows:
        sheet.append(list(row))


def pairs(faqs: Faqs) -> list[tuple[str, str]]:
    return list(zip(faqs.frame["instruction"], faqs.frame["response"], strict=True))


def noted(faqs: Faqs, text: str) -> bool:
    return any(text in note for note in faqs.notes)


@pytest.mark.parametrize("name", ["mine.xlsx", "mine.csv", "mine.xls"])
def test_a_sheet_with_a_header(book, name) -> None:
    _, sheet, load = book
    fill(sheet, ("Question", "Answer"), *PAIRS)
    faqs = load(name)
    assert pairs(faqs) == PAIRS
    assert list(faqs.frame.index) == [2, 3, 4]
    assert noted(faqs, "holds Excel") == (name == "mine.csv")


def test_columns_beside_and_an_empty_line(book) -> None:
    _, sheet, load = book
    fill(sheet, ("ID", "Question", "Notes", "Answer"))
    fill(sheet, (1, PAIRS[0][0], "See the shelf.", PAIRS[0][1]), ())
    sheet.cell(4, 2, PAIRS[1][0])
    sheet.cell(4, 4, PAIRS[1][1])
    faqs = load()
    assert pairs(faqs) == PAIRS[:2]
    assert list(faqs.frame["context"]) == ["See the shelf.", ""]
    assert list(faqs.frame["ID"]) == ["1", ""]
    assert list(faqs.frame.index) == [2, 4]


def test_a_title_merged_above_the_header(book) -> None:
    _, sheet, load = book
    fill(sheet, ("All our questions",), (), ("Question", "Answer"), *PAIRS)
    sheet.merge_cells("A1:B1")
    faqs = load()
    assert pairs(faqs) == PAIRS
    assert noted(faqs, "header stands in row 3; what is above it was left out: row 1")


def test_cells_merged_over_rows_count_for_each(book) -> None:
    _, sheet, load = book
    fill(sheet, ("topic", "question", "answer"))
    fill(sheet, ("use", *PAIRS[0]), (None, *PAIRS[1]), ("place", *PAIRS[2]))
    sheet.merge_cells("A2:A3")
    faqs = load()
    assert list(faqs.frame["topic"]) == ["use", "use", "place"]
    assert noted(faqs, "merged over several rows count for each of them: row 3")


def test_an_answer_merged_over_several_questions(book) -> None:
    _, sheet, load = book
    fill(sheet, ("question", "answer"), PAIRS[0], (PAIRS[1][0],))
    sheet.merge_cells("B2:B3")
    assert [answer for _, answer in pairs(load())] == [PAIRS[0][1]] * 2


def test_the_sheet_with_the_questions_is_read_and_others_are_named(book) -> None:
    workbook, sheet, load = book
    fill(sheet, ("Read me first",), ("Written in May",))
    fill(workbook.create_sheet("Questions"), ("Question", "Answer"), *PAIRS)
    fill(workbook.create_sheet("More"), ("Question", "Answer"), *PAIRS[:1])
    faqs = load()
    assert pairs(faqs) == PAIRS
    assert noted(faqs, "Read was the sheet 'Questions'")
    assert noted(faqs, "'More' (2 rows)")


def test_a_hidden_sheet_is_not_preferred(book) -> None:
    workbook, sheet, load = book
    fill(sheet, ("Question", "Answer"), ("Old?", "Yes, it is old."))
    sheet.sheet_state = "hidden"
    fill(workbook.create_sheet("New"), ("Question", "Answer"), *PAIRS)
    assert pairs(load()) == PAIRS


def test_hidden_rows_are_read_with_a_note(book) -> None:
    _, sheet, load = book
    fill(sheet, ("Question", "Answer"), *PAIRS)
    sheet.row_dimensions[3].hidden = True
    faqs = load()
    assert pairs(faqs) == PAIRS
    assert noted(faqs, "Hidden rows were read as well: row 3")


def test_a_formula_without_a_saved_result_names_the_cell(book) -> None:
    _, sheet, load = book
    fill(sheet, ("Question", "Answer"), ("How many?", "=1+1"))
    with pytest.raises(DataError, match="row 2: the cell B2 .*formula.*save it again"):
        load()


def test_numbers_dates_and_words_stay_as_they_are_shown(book) -> None:
    _, sheet, load = book
    fill(sheet, ("Question", "Answer"))
    cells = [
        (49, "0000", "0049"),
        (0.495, "0%", "50%"),
        (0.495, "0.0%", "49.5%"),
        (1234.5, "#,##0.00", "1,234.50"),
        (1234, '#,##0 "km"', "1,234 km"),
        (5, "$#,##0.00", "$5.00"),
        (3, "General", "3"),
        (0.1 + 0.2, "General", "0.3"),
        (True, "General", "TRUE"),
        (datetime.datetime(2025, 5, 7), "yyyy-mm-dd", "2025-05-07"),
        (datetime.datetime(2025, 5, 7), "dd.mm.yyyy", "07.05.2025"),
        (datetime.datetime(2025, 5, 7), "d mmmm yyyy", "7 May 2025"),
        (datetime.datetime(2025, 5, 7, 9, 5), "dd/mm/yyyy hh:mm", "07/05/2025 09:05"),
        (datetime.time(14, 5), "h:mm am/pm", "2:05 PM"),
        ("NA", "General", "NA"),
        ("None", "General", "None"),
        ("1e5", "@", "1e5"),
        ("007", "@", "007"),
    ]
    for place, (value, number_format, _) in enumerate(cells):
        sheet.append([f"What is shown in {place}?", value])
        sheet.cell(place + 2, 2).number_format = number_format
    assert [answer for _, answer in pairs(load())] == [text for *_, text in cells]


@pytest.mark.parametrize(
    "value, number_format, text",
    [
        (None, "General", ""),
        (-5, "0.00", "-5.00"),
        (-5, "0;(0)", "(5)"),
        (12_345_678_901, "General", "12345678901"),
        (1.5, "# ?/?", "1.5"),
        (5, "[$€-407] #,##0.00", "€ 5.00"),
        (5, '0.00 "€"', "5.00 €"),
        (0.5, "#.##", "0.5"),
        (datetime.date(2025, 5, 7), "General", "2025-05-07"),
        (datetime.timedelta(hours=26, minutes=3), "[h]:mm", "26:03:00"),
    ],
)
def test_what_a_cell_shows(value, number_format, text) -> None:
    assert shown(value, number_format) == text


def test_no_header_and_three_columns_ask_for_names(book) -> None:
    _, sheet, load = book
    fill(sheet, *[("use", *pair) for pair in PAIRS])
    with pytest.raises(DataError, match="no header, and 3 columns"):
        load()


def test_two_columns_without_header(book) -> None:
    _, sheet, load = book
    fill(sheet, *PAIRS)
    assert pairs(load()) == PAIRS


def test_an_empty_or_damaged_workbook(book, tmp_path) -> None:
    _, sheet, load = book
    with pytest.raises(DataError, match="no text"):
        load()
    fill(sheet, ("Question", "Answer"), *PAIRS)
    load()
    raw = (tmp_path / "mine.xlsx").read_bytes()
    (tmp_path / "mine.xlsx").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match="cut off or damaged"):
        load_faqs(tmp_path / "mine.xlsx")


def test_a_missing_answer_names_the_row(book) -> None:
    _, sheet, load = book
    fill(sheet, ("Question", "Answer"), PAIRS[0], ("Why?",))
    with pytest.raises(DataError, match="mine.xlsx, row 3: expected a response"):
        load()
