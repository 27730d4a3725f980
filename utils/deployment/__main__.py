"""List what bills in an AWS account, whoever created it. It reads and deletes nothing.

COURSE_AWS=real python -m utils.deployment bill

Looked at is the account behind the usual credentials, in one region: what runs by the
hour, and what is left of the course, each with the command that ends it. The exit code
is 1 if something bills, 0 if nothing does, and 2 if something could not be looked at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from utils.course import CourseError, run_config
from utils.deployment.account import look
from utils.deployment.aws import account_to_look_at

COULD_NOT_LOOK = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: of the command line; the process's own by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m utils.deployment",
        description="List what bills in an AWS account, and delete nothing.",
        epilog="Exit code: 0 nothing bills, 1 something does, 2 it could not look.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("bill", help="what bills, and the commands that end it")
    parser.parse_args(arguments)
    try:
        account = look(account_to_look_at(run_config()))
    except CourseError as error:
        print(error, file=sys.stderr)
        return COULD_NOT_LOOK
    print(account)
    if account.bills:
        return 1
    return COULD_NOT_LOOK if account.unseen else 0


if __name__ == "__main__":
    sys.exit(main())
