"""Is this machine ready for the class? `python -m utils.course check`.

    python -m utils.course check                       this machine
    python -m utils.course check --aws                 and the AWS account
    python -m utils.course check --aws --learners 40   with quotas for so many
    python -m utils.course check --packages            their versions only

It prints a line for each thing, [OK] or [FAIL] with what to do. Nothing is installed,
created or changed, on AWS neither. Without the course's packages it says which are
missing; `--aws` needs them. Exit codes: 0 ready, 1 not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence

from utils.classroom.machine_check import Line, machine_lines, packages_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the lines; return the exit code.

    Args:
        arguments: of the command line; the process's own by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m utils.course", description="Is this machine ready for a class?"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check",
        help="look at everything that a class needs",
        description="Look at everything that a class needs, and change nothing.",
        epilog="Exit code: 0 ready, 1 something is to be done.",
    )
    check.add_argument("--aws", action="store_true", help="look at the account, too")
    check.add_argument("--learners", type=int, default=1, help="quotas for so many")
    check.add_argument("--packages", action="store_true", help="only the packages")
    check.add_argument("--json", action="store_true", help="print the lines as JSON")
    options = parser.parse_args(arguments)
    if options.learners < 1:
        parser.error(f"--learners is {options.learners}: give 1 or more")
    lines = []
    for line in _all_lines(options):
        lines.append(line)
        if not options.json:
            print(line, flush=True)
    failed = [line for line in lines if not line.ok]
    if options.json:
        print(json.dumps([{**vars(line), "ok": line.ok} for line in lines], indent=1))
    else:
        print(f"\n{len(failed)} to be done." if failed else "\nReady.")
    return int(bool(failed))


def _all_lines(options: argparse.Namespace) -> Iterator[Line]:
    if options.packages:
        yield packages_line()
        return
    yield from machine_lines()
    if options.aws:
        try:
            from utils.classroom.account_check import account_lines
        except ImportError as error:
            remedy = "Run `make install`, then check again."
            yield Line("AWS", f"{error.name} is not installed", remedy)
            return
        yield from account_lines(learners=options.learners)


if __name__ == "__main__":
    sys.exit(main())
