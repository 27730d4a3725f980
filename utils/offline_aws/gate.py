"""What stands before the offline AWS: nobody but this run's own clients gets in.

A web page in the learner's browser can send requests to 127.0.0.1, and so can every
user of the machine. So each request must name this server as its host (a page that has
its own name point here cannot), come from no foreign origin, and be signed with the
key of this run. No reply opens itself to other origins. What then fails in moto is
answered at once, and as AWS's protocols write it.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterable
from typing import Any

from utils.offline_aws.errors import AwsFault, not_played
from utils.offline_aws.operations import FORM, Call, identify
from utils.offline_aws.signatures import Key, check_signature, read_signature

# moto's own pages, which need no signature in moto's eyes, and instance metadata.
NOT_OF_AWS = re.compile(r"/(moto-api|latest/(meta-data|api))(/.*)?|/favicon\.ico")
OPENS_ITSELF = "access-control-"
LONGEST_FORM = 1024**2
Respond = Callable[..., Any]


class Gate:
    """The WSGI application that lets this run's requests through to another."""

    def __init__(self, application: Callable, address: str, key: Key):
        """Guard an application.

        Args:
            application: what answers the calls; may raise `AwsFault`.
            address: host and port under which clients know this server.
            key: the one that requests are signed with.
        """
        self.application = application
        self.key = key
        port = address.rpartition(":")[2]
        self._hosts = {address, f"localhost:{port}"}
        self._origins = {f"http://{host}" for host in self._hosts}

    def __call__(self, environ: dict, start_response: Respond) -> Iterable[bytes]:
        """Answer a request, or refuse it."""
        start_response = _closed_to_others(start_response)
        call = None
        try:
            call = self._admit(environ)
            environ["offline_aws.call"] = call
            return self._answer(environ, start_response, call)
        except AwsFault as fault:
            environ.get("offline_aws.hurry", _nothing)()
            protocol = call.protocol if call else _protocol_of_refused(environ)
            return fault.answer(protocol, start_response)

    def _admit(self, environ: dict) -> Call:
        """Check where a request comes from and who signed it; return what it calls.

        Raises:
            AwsFault: if it is refused, or cannot be read.
        """
        try:
            self._check_place(environ)
            signed = check_signature(environ, self.key)
            return identify(environ, signed.service, _beginning(environ))
        except (AwsFault, OSError):
            raise
        except Exception as error:
            message = f"The request cannot be read ({type(error).__name__}: {error})."
            raise AwsFault(400, "InvalidRequest", message) from error

    def _check_place(self, environ: dict) -> None:
        """Refuse what was not sent to this server, or comes from a foreign page.

        Raises:
            AwsFault: with status 403.
        """
        host = environ.get("HTTP_HOST", "").lower()
        if host not in self._hosts:
            raise AwsFault(
                403, "AccessDenied", f"The host {host!r} is not this offline AWS's."
            )
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and origin.lower() not in self._origins:
            raise AwsFault(
                403, "AccessDenied", "The offline AWS answers no other page's requests."
            )
        if NOT_OF_AWS.fullmatch(environ.get("PATH_INFO", "")):
            raise AwsFault(403, "AccessDenied", "This is no call of an AWS service.")

    def _answer(
        self, environ: dict, start_response: Respond, call: Call
    ) -> Iterable[bytes]:
        """Hand the request on; whatever is not played is said to be so.

        Raises:
            AwsFault: in place of moto's own pages for what it does not know.
        """
        answered = _Answer(start_response)
        try:
            parts = self.application(environ, answered.start)
        except AwsFault:
            raise
        except (NotImplementedError, ImportError) as error:
            raise not_played(str(call)) from error
        except Exception as error:
            why = f" with these parameters ({type(error).__name__}: {error})"
            raise not_played(str(call), why) from error
        if answered.is_no_answer_of_aws(environ):
            if hasattr(parts, "close"):
                parts.close()
            raise not_played(str(call))
        answered.pass_on()
        return parts


class _Answer:
    """Status and headers of an answer, kept until it is clear what they are."""

    def __init__(self, start_response: Respond):
        self._start_response = start_response
        self._given: tuple[str, list[tuple[str, str]]] | None = None

    def start(
        self, status: str, headers: list[tuple[str, str]], *_: Any
    ) -> Callable[[bytes], None]:
        """Take what the application wants to answer."""
        self._given = status, headers
        return lambda data: None

    def is_no_answer_of_aws(self, environ: dict) -> bool:
        """Say whether this is a web page of Flask's, or moto's "no such action"."""
        if self._given is None:
            return True
        status, headers = self._given
        found = {name.lower(): value for name, value in headers}
        code = int(status.split()[0])
        page = found.get("content-type", "").startswith("text/html")
        if code in (404, 405, 500, 501) and page and "x-amz-request-id" not in found:
            call = environ["offline_aws.call"]
            empty = found.get("content-length") == "0"
            return call.service != "s3" or (code != 404 and not empty)
        return False

    def pass_on(self) -> None:
        """Begin the answer."""
        assert self._given is not None
        self._start_response(*self._given)


def _nothing() -> None:
    """Do nothing: for servers that cannot be hurried."""


def _closed_to_others(start_response: Respond) -> Respond:
    """Take out of every answer what would let a foreign page read it."""

    def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
        kept = [one for one in headers if not one[0].lower().startswith(OPENS_ITSELF)]
        return start_response(status, kept, *more)

    return start


def _beginning(environ: dict) -> bytes:
    """Return the body of a form, in which some protocols name the operation."""
    if not environ.get("CONTENT_TYPE", "").startswith(FORM):
        return b""
    body = environ["wsgi.input"].read(LONGEST_FORM)
    rest = environ["wsgi.input"].read()
    environ["wsgi.input"] = io.BytesIO(body + rest)
    return body


def _protocol_of_refused(environ: dict) -> str:
    """Return the protocol in which to refuse a request, from what it claims to be."""
    with contextlib.suppress(Exception):
        signed = read_signature(environ)
        if signed is not None:
            return identify(environ, signed.service, b"Action=Any").protocol
    if environ.get("HTTP_X_AMZ_TARGET"):
        return "json"
    if environ.get("CONTENT_TYPE", "").startswith(FORM):
        return "query"
    return "rest-json" if "/endpoints/" in environ.get("PATH_INFO", "") else "rest-xml"
