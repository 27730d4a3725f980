"""For whoever teaches the course or keeps it alive.

    python -m utils.classroom copies [folder]      to teach live: code without prose
    python -m utils.classroom hosted [folder]      for Colab: with the first cell
    python -m utils.classroom address ADDRESS      the repository's, for the README
    python -m utils.classroom policy FILE          of data/aws, filled in
    python -m utils.classroom guide                the table of the guide, written anew
    python -m utils.classroom newest [notebooks]   with the newest versions

`python -m utils.course check` looks whether a machine is ready. Exit codes: 0 done,
1 something is wrong, or with `newest` a notebook fails, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from utils.classroom import address, copies, guide, newest
from utils.classroom.copies import Change
from utils.course import CourseError, run_config

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code.

    Args:
        arguments: of the command line; the process's own by default.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m utils.classroom")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, about: str, run: Callable) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=about, description=about)
        one.set_defaults(run=run)
        return one

    for name, about, change in (
        ("copies", "Write copies to teach live with.", _to_teach_live),
        ("hosted", "Write copies for Colab.", _for_colab),
    ):
        one = command(name, about, partial(_write_copies, change=change))
        one.add_argument("folder", nargs="?", type=Path, help=f"default: build/{name}")
    one = command("address", "Write the repository's address.", _address)
    one.add_argument("address", help="such as https://github.com/you/your-fork")
    one = command("policy", "Print a policy of data/aws, filled in.", _policy)
    one.add_argument("file", help="its name, such as studio_learner_policy.json")
    one.add_argument("--account", required=True, help="its twelve digits")
    one.add_argument("--region", default="us-east-1")
    one.add_argument("--bucket", default="", help="default: SageMaker's own")
    one.add_argument("--role", default="", help="ARN of SageMaker's role")
    command("guide", "Write the table of the guide anew.", _guide)
    one = command("newest", "Try the newest versions of all packages.", _newest)
    one.add_argument("notebooks", nargs="*", help="such as 01; all by default")
    one.add_argument("--resolve-only", action="store_true", help="install nothing")
    return parser


def _write_copies(options: argparse.Namespace, change: Callable[[], Change]) -> int:
    folder = options.folder or run_config().build / options.command
    written = copies.write_copies(folder.resolve(), change())
    print(f"{len(written)} notebooks in {folder}")
    return 0


def _to_teach_live() -> Change:
    return copies.for_live_teaching


def _for_colab() -> Change:
    return partial(copies.with_first_cell, repository=address.repository())


def _address(options: argparse.Namespace) -> int:
    address.set_address(options.address)
    print("README.md names it.")
    return 0


def _policy(options: argparse.Namespace) -> int:
    from utils.classroom.account_check import filled_in, placeholders

    values = placeholders(options.account, options.region, options.bucket, options.role)
    print(filled_in(options.file, values))
    return 0


def _guide(options: argparse.Namespace) -> int:
    guide.write()
    print(f"{guide.GUIDE.name}: its table is as the README and the prices say.")
    return 0


def _newest(options: argparse.Namespace) -> int:
    pip_arguments = shlex.split(os.environ.get("PIP_ARGS", ""))
    folder = run_config().build / "newest"
    trial = newest.Trial(folder, pip_arguments=pip_arguments)
    changes, outcomes = newest.try_newest(
        trial, options.notebooks, options.resolve_only
    )
    print("\n".join(changes) or "All pins are the newest versions that fit together.")
    failed = [one for one in outcomes if one.error]
    if outcomes:
        print("\n" + "\n".join(map(str, outcomes)))
        print(f"\n{len(outcomes) - len(failed)} of {len(outcomes)} notebooks ran.")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
