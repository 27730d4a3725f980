"""Build the course as a static site: `python -m utils.site [folder]`.

    python -m utils.site            into COURSE_BUILD/site
    python -m utils.site public     into any other folder, which is replaced

The pages show what is stored in the notebooks; nothing is executed, and nothing is
asked of another machine. Exit codes: 0 built, 1 something is wrong and nothing was
replaced, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.course import ROOT, CourseError, run_config
from utils.site.build import build_site

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Build the site; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.site", description="Build the course as a static site."
    )
    parser.add_argument("folder", nargs="?", type=Path, help="default: build/site")
    folder = parser.parse_args(argv).folder
    try:
        site = build_site((folder or run_config().build / "site").resolve())
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted: nothing was replaced.", file=sys.stderr)
        return INTERRUPTED
    count = len({*site.pages.notebooks, *site.pages.documents})
    place = site.index
    if place.is_relative_to(ROOT):
        place = place.relative_to(ROOT)
    print(f"{count} pages and an index: open {place}")
    dated = [(one.date, path) for path, one in site.origins.items() if one.date]
    if dated:
        date, path = min(dated)
        print(f"The oldest stored outputs are of {date}, in {path}. `make test`")
        print("compares all of them with a fresh run.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
