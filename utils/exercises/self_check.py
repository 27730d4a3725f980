"""The questions at the end of each notebook: `python -m utils.exercises.self_check`.

    python -m utils.exercises.self_check          write them into all notebooks
    python -m utils.exercises.self_check 04 08    into these lessons
    python -m utils.exercises.self_check experiments/05_statistics

They stand in `data/self_checks`, in `lesson_NN.yaml` or `experiment_NN_name.yaml`, and
the command writes them into the cell `self-check` of the notebook, above its last one.
Each answer is a `<details>` block, which opens by keyboard and needs no script, no id
and no service: JupyterLab takes ids and names out of what it does not trust. Where HTML
is left out altogether, the text reads in order: question, answers with their letters,
what is said of each.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import nbformat
import yaml

from utils.course import ROOT, CourseError
from utils.files import write_text

CELL = "self-check"  # the id of the cell
FOLDER = ROOT / "data" / "self_checks"
NOTEBOOKS = ROOT / "notebooks"
EXPERIMENTS = "experiments"  # a folder in that of the lessons
COUNT = 5  # questions of a notebook
LETTERS = "ABCD"
# What a slip in the file may raise, such as an answer that YAML takes for a number.
FAULTS = (OSError, AttributeError, LookupError, TypeError, ValueError, yaml.YAMLError)
WORDS_A_MINUTE = 150
MINUTES_A_QUESTION = 0.5  # to think
VERDICTS = {True: "**Right.**", False: "**No.**"}
SECTION = re.compile(r"^## (\d+) · (.+)$", re.MULTILINE)
INTRODUCTION = (
    "Decide on an answer, then open it: each says whether it is right, and why. By "
    "keyboard, Tab leads from answer to answer and Space opens one. The "
    "[glossary]({up}glossary.md) explains the terms, and [getting unstuck]"
    "({up}getting_unstuck.md) helps when something fails."
)


class SelfCheckError(CourseError):
    """Questions that cannot be written; the message names the file and the fault."""


@dataclass(frozen=True)
class Answer:
    """An answer that a learner can choose.

    Attributes:
        text: the answer. Code stands between backticks, what is emphasised between
            asterisks.
        feedback: what is said once it is opened, as Markdown.
        right: whether it is the right one.
    """

    text: str
    feedback: str
    right: bool = False


@dataclass(frozen=True)
class Question:
    """A question with its answers.

    Attributes:
        section: number of the section that answers it.
        text: the question, as Markdown.
        answers: three or four, in the order in which they are shown.
    """

    section: int
    text: str
    answers: tuple[Answer, ...]


def read_questions(file: Path) -> list[Question]:
    """Read the questions of a notebook.

    Args:
        file: YAML, as those of `data/self_checks` are.

    Raises:
        SelfCheckError: if there are not five questions, or one has not three or four
            answers, not exactly one right answer, or an answer without a text or a
            feedback of its own.
    """
    try:
        found = [_question(one) for one in yaml.safe_load(file.read_text("utf-8"))]
    except FAULTS as error:
        raise SelfCheckError(
            f"{file.name} cannot be read ({type(error).__name__}: {error}): write a "
            "list of questions as the other files of data/self_checks have."
        ) from error
    faults = [
        f"question {number}: {fault}"
        for number, question in enumerate(found, start=1)
        if (fault := _fault(question))
    ]
    texts = [answer.feedback for question in found for answer in question.answers]
    if len(found) != COUNT:
        faults.append(f"there are {len(found)} questions, not {COUNT}")
    if len(set(texts)) < len(texts):
        faults.append("two answers have the same feedback")
    if faults:
        raise SelfCheckError(f"{file.name}: {'; '.join(faults)}. Correct the file.")
    return found


def _question(found: dict[str, Any]) -> Question:
    answers = tuple(
        Answer(one["answer"].strip(), one["feedback"].strip(), one.get("right", False))
        for one in found["choices"]
    )
    return Question(int(found["section"]), found["question"].strip(), answers)


def _fault(question: Question) -> str:
    """Return what is wrong with a question; "" if nothing is."""
    right = sum(answer.right for answer in question.answers)
    texts = [answer.text for answer in question.answers]
    if not 3 <= len(texts) <= len(LETTERS):
        return f"it has {len(texts)} answers, not three or four"
    if right != 1:
        return f"{right} answers are right, not one"
    if len(set(texts)) < len(texts):
        return "an answer stands there twice"
    if not all(answer.text and answer.feedback for answer in question.answers):
        return "an answer or a feedback is empty"
    # JupyterLab sets what lies between two of them as a formula.
    feedback = [answer.feedback for answer in question.answers]
    if "$" in " ".join([question.text, *texts, *feedback]):
        return "it has a dollar sign: write the word"
    return ""


def minutes_of(questions: Sequence[Question]) -> int:
    """Return how long a self-check takes, in minutes.

    150 words a minute, what is folded included, and half a minute a question to think.
    The time that a notebook states at its top leaves it out.
    """
    texts = [
        text
        for question in questions
        for text in (
            question.text,
            *(f"{answer.text} {answer.feedback}" for answer in question.answers),
        )
    ]
    words = sum(len(text.split()) for text in texts)
    return round(words / WORDS_A_MINUTE + MINUTES_A_QUESTION * len(questions))


def cell_source(
    questions: Sequence[Question], notebook: nbformat.NotebookNode, up: str = ""
) -> str:
    """Return the Markdown of the cell.

    Args:
        questions: of the notebook.
        notebook: the notebook, in which the sections are looked up.
        up: the way to the folder of the lessons: "../" from an experiment.

    Raises:
        SelfCheckError: if a question names a section that the notebook does not have.
    """
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    sections = {int(n): name for n, name in SECTION.findall("\n\n".join(prose))}
    parts = [
        "## Self-check",
        f"*{minutes_of(questions)} minutes, which the time at the top leaves out*",
        INTRODUCTION.format(up=up),
    ]
    for number, question in enumerate(questions, start=1):
        name = sections.get(question.section)
        if name is None:
            raise SelfCheckError(
                f"Question {number} names section {question.section}, which the "
                "notebook does not have: correct the number."
            )
        place = f"#{question.section}-·-{name.replace(' ', '-')}"
        where = f"([section {question.section}]({place}))"
        # JupyterLab leaves no room below the answers of the question before.
        parts += ["---"] * (number > 1) + [f"**{number}.** {question.text} {where}"]
        parts += [
            _shown(letter, answer)
            for letter, answer in zip(LETTERS, question.answers, strict=False)
        ]
    return "\n\n".join(parts)


def _shown(letter: str, answer: Answer) -> str:
    """Return an answer, which says when it is opened whether it is right."""
    return (
        f"<details><summary>{letter}. {_as_html(answer.text)}</summary>\n\n"
        f"{VERDICTS[answer.right]} {answer.feedback}\n\n</details>"
    )


def _as_html(text: str) -> str:
    """Return an answer as HTML: Markdown is not read within a line of HTML."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", text)


def with_self_check(
    notebook: nbformat.NotebookNode, questions: Sequence[Question], up: str = ""
) -> nbformat.NotebookNode:
    """Write the questions into a notebook, in place, and return it.

    Args:
        notebook: its cell `self-check` is replaced; without one, a new cell comes above
            the last.
        questions: of the notebook.
        up: the way to the folder of the lessons: "../" from an experiment.
    """
    source = cell_source(questions, notebook, up)
    for cell in notebook.cells:
        if cell.id == CELL:
            cell.source = source
            return notebook
    made = nbformat.v4.new_markdown_cell(source, id=CELL)
    notebook.cells.insert(len(notebook.cells) - 1, made)
    return notebook


@dataclass(frozen=True)
class SelfCheck:
    """Where the questions of a notebook stand, and where they are shown.

    Attributes:
        file: of the questions.
        path: of the notebook.
        name: what the command calls it, such as "04" or "experiments/05_statistics".
    """

    file: Path
    path: Path
    name: str

    @property
    def up(self) -> str:
        """The way from the notebook to the folder of the lessons."""
        return "../" if self.path.parent.name == EXPERIMENTS else ""


def self_checks(names: Sequence[str] = ()) -> list[SelfCheck]:
    """Return the self-checks of notebooks, lessons first.

    Args:
        names: such as "04" or "experiments/05_statistics"; none stands for all.

    Raises:
        SelfCheckError: if there is no such notebook, or no questions for it.
    """
    known = {}
    for file in sorted(FOLDER.glob("lesson_*.yaml")):
        name = file.stem.removeprefix("lesson_")
        for path in NOTEBOOKS.glob(f"{name}_*.ipynb"):
            known[name] = SelfCheck(file, path, name)
    for file in sorted(FOLDER.glob("experiment_*.yaml")):
        name = f"{EXPERIMENTS}/{file.stem.removeprefix('experiment_')}"
        path = NOTEBOOKS / f"{name}.ipynb"
        if path.is_file():
            known[name] = SelfCheck(file, path, name)
    for name in names:
        if name not in known:
            raise SelfCheckError(
                f"There is no notebook {name!r} with questions: give some of "
                f"{', '.join(known)}."
            )
    return [one for name, one in known.items() if not names or name in names]


def main(argv: Sequence[str]) -> int:
    """Write the questions into the notebooks; return the exit code."""
    try:
        for one in self_checks(argv):
            questions = read_questions(one.file)
            text = one.path.read_text(encoding="utf-8")
            notebook = nbformat.reads(text, as_version=nbformat.NO_CONVERT)
            written = nbformat.writes(with_self_check(notebook, questions, one.up))
            if written.rstrip() + "\n" != text:
                write_text(one.path, written.rstrip() + "\n")
            print(f"{one.name}: {COUNT} questions, {minutes_of(questions)} minutes")
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
