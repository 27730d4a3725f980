"""Check a file of questions and answers without a notebook, or make rows for replay.

python -m utils.dataset check FILE [--encoding NAME] [--model NAME]
python -m utils.dataset replay

`check` prints what was repaired and what to look at, with the rows. The exit code is 0
if there is nothing to look at, 1 if there is, and 2 if the file cannot be used.
`replay` asks SmolLM2 all requests of `utils/dataset/replay.py` and writes its answers
to `data/replay_answers.csv`, in some minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from utils.course import CourseError, run_config
from utils.dataset.checks import check, template_of
from utils.dataset.faqs import load_faqs
from utils.dataset.replay import ANSWERS, record_answers

UNUSABLE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: of the command line; the process's own by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m utils.dataset",
        description="Check a file of questions and answers before training on it.",
        epilog="Exit code: 0 nothing to look at, 1 something, 2 the file is unusable.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("check", help="print what to look at, with the rows")
    one.add_argument(
        "file",
        help="CSV, JSON Lines, JSON, Parquet or Excel, or a data set's id on the hub",
    )
    one.add_argument("--encoding", help="of a text file that is not in UTF-8")
    one.add_argument("--model", help="whose limit rows must fit; else COURSE_MODEL")
    commands.add_parser("replay", help="record SmolLM2's own answers, to be replayed")
    options = parser.parse_args(arguments)
    try:
        if options.command == "replay":
            print(f"{record_answers()} answers: {ANSWERS.name}")
            return 0
        model = run_config({"COURSE_MODEL": options.model} if options.model else _own())
        faqs = load_faqs(options.file, options.encoding)
        template, limit, problem = template_of(model.model)
        report = check(faqs, template, limit)
    except (CourseError, FileNotFoundError, LookupError) as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    if problem:
        report.notes.append(problem)
    print(report)
    return report.exit_code


def _own() -> dict[str, str]:
    """Return the environment without COURSE_DATA, which is not looked at here."""
    import os

    return {name: value for name, value in os.environ.items() if name != "COURSE_DATA"}


if __name__ == "__main__":
    sys.exit(main())
