"""What bills in an AWS account, and how an endpoint stands up to load.

COURSE_AWS=real python -m utils.deployment bill
COURSE_AWS=real python -m utils.deployment remove NAME
COURSE_AWS=real python -m utils.deployment load requests.jsonl --endpoint NAME
python -m utils.deployment load requests.jsonl --url http://127.0.0.1:8080/invocations

`bill` lists what runs by the hour and what is left of the course, whoever created it,
each with the command that ends it. Looked at is the account behind the usual
credentials, in one region; it reads and deletes nothing. The exit code is 1 if
something bills, 0 if nothing does, and 2 if something could not be looked at.

`remove` deletes a stack of the course (lesson 07) with all that it made. The exit code
is 0 if it is gone, and 2 if not.

`load` sends the requests of a file, one JSON object a line, over and over, and prints a
table. It writes nothing, unless `--json` names a file. The exit code is 0 if every
request was answered, 1 if one was not, and 2 if nothing could be asked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.course import CourseError, run_config
from utils.deployment import stacks
from utils.deployment.account import look
from utils.deployment.aws import account_to_look_at
from utils.deployment.load import check_load, curve, open_loop, report, warm_up
from utils.deployment.replies import Endpoint, Target, Url, read_requests
from utils.files import write_json

COULD_NOT_LOOK = 2
CLIENTS = (1, 2, 4, 8, 16)
SECONDS = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: of the command line; the process's own by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m utils.deployment",
        description="List what bills in an AWS account, remove a stack, or put load on "
        "an endpoint.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    bill = commands.add_parser(
        "bill",
        help="what bills, and the commands that end it",
        description="List what bills in an AWS account, and delete nothing.",
        epilog="Exit code: 0 nothing bills, 1 something does, 2 it could not look.",
    )
    bill.set_defaults(run=_bill)
    remove = commands.add_parser(
        "remove",
        help="delete a stack of the course",
        description="Delete a stack of the course with all that it made, and wait.",
    )
    remove.add_argument("name", help="of the stack, as `bill` lists it")
    remove.set_defaults(run=_remove)
    _add_load(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except CourseError as error:
        print(error, file=sys.stderr)
        return COULD_NOT_LOOK


def _bill(_: argparse.Namespace) -> int:
    account = look(account_to_look_at(run_config()))
    print(account)
    if account.bills:
        return 1
    return COULD_NOT_LOOK if account.unseen else 0


def _remove(options: argparse.Namespace) -> int:
    aws = account_to_look_at(run_config())
    stacks.remove(aws.session, options.name, aws.bucket)
    return 0


def _add_load(commands: argparse._SubParsersAction) -> None:
    load = commands.add_parser(
        "load",
        help="latency and throughput of an endpoint under load",
        description="Send the requests of a file over and over, and print a table. "
        "An endpoint of AWS bills while it is asked.",
        epilog="Exit code: 0 every request was answered, 1 one was not, 2 nothing "
        "could be asked.",
    )
    load.add_argument("file", type=Path, help="requests, one JSON object a line")
    where = load.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="a server's, asked by POST")
    where.add_argument("--endpoint", help="an endpoint's name, asked by boto3")
    load.add_argument(
        "--clients",
        type=int,
        nargs="+",
        help="closed loop: so many ask at once, each after its last reply "
        f"(default: {' '.join(map(str, CLIENTS))}, unless there is --rate)",
    )
    load.add_argument(
        "--rate",
        type=float,
        nargs="+",
        help="open loop: so many requests a second arrive, at random times",
    )
    load.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help=f"of each load (default: {SECONDS:g})",
    )
    load.add_argument("--stream", action="store_true", help="ask for streams")
    load.add_argument("--json", type=Path, help="also write the figures to this file")
    load.set_defaults(run=_load)


def _load(options: argparse.Namespace) -> int:
    bodies = read_requests(options.file, options.stream)
    clients, rates = options.clients or [], options.rate or []
    if not clients and not rates:
        clients = list(CLIENTS)
    check_load(bodies, clients, rates, options.seconds)
    target: Target
    if options.url:
        target = Url(options.url)
    else:
        session = account_to_look_at(run_config()).session
        target = Endpoint(session, options.endpoint, options.stream)
    loads = curve(target, bodies, clients, options.seconds) if clients else []
    if rates and not clients:
        warm_up(target, bodies)
    loads += [open_loop(target, bodies, rate, options.seconds) for rate in rates]
    print(report(loads))
    if options.json:
        figures = [load.as_dict() for load in loads]
        write_json(options.json, figures)
    return int(any(len(load.good) < len(load.replies) for load in loads))


if __name__ == "__main__":
    sys.exit(main())
