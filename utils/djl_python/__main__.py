"""Serve an artifact from the command line, as the container would.

usage: python -m utils.djl_python FOLDER_OR_TAR [--port N]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from utils.temporary import temporary_folder

from .archives import unpack
from .layout import LoadError
from .process import NAMED_VARIABLES
from .server import Server

CLEANUP_TIMEOUT = 5  # seconds to end the workers, once the parent is gone


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; end with its usage if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.djl_python",
        description="Serve a DJL artifact on 127.0.0.1 as DJL Serving would. "
        "Ends with code 1 and the reason when the artifact does not load.",
    )
    parser.add_argument(
        "artifact", help="folder, model.tar.gz, or s3:// address of the latter"
    )
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    parser.add_argument(
        "--give-up-after",
        type=int,
        default=3,
        metavar="N",
        help="tries of a worker that the real server would restart for ever "
        "(0: restart it for ever here, too)",
    )
    parser.add_argument(
        "--allow-requirements",
        action="store_true",
        help="serve an artifact with a requirements.txt, without installing it",
    )
    parser.add_argument(
        "--announce",
        action="store_true",
        help="print the port, or the reason of a failure, as a line of JSON",
    )
    parser.add_argument(
        "--end-with-parent",
        action="store_true",
        help="end when standard input closes",
    )
    return parser.parse_args(arguments)


def announce(wanted: bool, **status: object) -> None:
    """Tell the process that started this one how it went."""
    if wanted:
        sys.stdout.write(json.dumps(status) + "\n")
        sys.stdout.flush()


def fetch(artifact: str, folder: Path) -> Path:
    """Return the artifact's path on this disk; download and unpack it if necessary.

    Args:
        artifact: path of a folder or archive, or an s3:// address.
        folder: where to put what is downloaded or unpacked.

    Raises:
        LoadError: if there is no artifact.
    """
    path = Path(artifact)
    if artifact.startswith("s3://"):
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, _, key = artifact.removeprefix("s3://").partition("/")
        path = folder / "model.tar.gz"
        try:
            boto3.client("s3").download_file(bucket, key, str(path))
        except (BotoCoreError, ClientError) as error:
            raise LoadError(
                f"There is no model data at {artifact} ({error}). "
                "Upload the archive first."
            ) from error
    if not path.exists():
        raise LoadError(f"{path} is missing. Build the artifact first.")
    return unpack(path, folder) if path.is_file() else path


def watch_parent() -> None:
    """End this process, and with it the workers, when the parent is gone."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(CLEANUP_TIMEOUT)
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="parent-watch").start()


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the code with which the process ends."""
    options = parse_arguments(arguments)
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    if options.end_with_parent:
        watch_parent()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return serve(options)
    except KeyboardInterrupt:
        return 0


def serve(options: argparse.Namespace) -> int:
    """Serve until interrupted; return 1 if the artifact does not load."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        try:
            server = Server(
                fetch(options.artifact, folder),
                options.port,
                json.loads(os.environ.pop(NAMED_VARIABLES, "{}")),
                allow_requirements=options.allow_requirements,
            )
            stack.callback(server.stop)
            server.load(give_up_after=options.give_up_after or None)
            port = server.listen()
        except (LoadError, OSError) as error:
            logging.error("%s", error)
            announce(options.announce, error=str(error))
            return 1
        names = ", ".join(server.models) or "no model"
        logging.info("serving %s on http://127.0.0.1:%d (Ctrl-C ends it)", names, port)
        announce(options.announce, port=port)
        threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
