"""Errors of the offline AWS, written as each of AWS's protocols writes them.

Sources: the protocol tests of botocore (`botocore/parsers.py` reads all of these forms)
and Smithy's pages on awsJson 1.0/1.1, restJson1, restXml, awsQuery, ec2Query and
rpcv2Cbor.
"""

from __future__ import annotations

import html
import http.client
import json
import secrets
import struct
from collections.abc import Callable, Iterable
from typing import Any

JSON_TYPE = "application/x-amz-json-1.1"
CBOR = "smithy-rpc-v2-cbor"
CBOR_MAP, CBOR_TEXT = 0xA0, 0x60  # major types 5 and 3 of RFC 8949
CBOR_LENGTH_FOLLOWS = 0x1A  # the length takes the next four bytes


class AwsFault(Exception):
    """An answer that AWS would give in place of a result.

    Attributes:
        status: of HTTP.
        code: AWS's name for it, such as ValidationException.
        message: for people.
        more: further members of an error in JSON.
        names_itself: whether the answer carries the code; SageMaker's 413 does not.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        names_itself: bool = True,
        **more: Any,
    ):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.names_itself = names_itself
        self.more = more

    def as_response(self, protocol: str) -> tuple[str, list[tuple[str, str]], bytes]:
        """Return status line, headers and body in this protocol.

        Args:
            protocol: as botocore's service model calls it.
        """
        request = secrets.token_hex(16)
        headers = {"x-amzn-RequestId": request}
        if protocol in ("query", "ec2", "rest-xml"):
            headers["Content-Type"] = "text/xml"
            body = self._as_xml(protocol, request).encode()
        elif protocol == CBOR:
            headers |= {
                "Content-Type": "application/cbor",
                "smithy-protocol": "rpc-v2-cbor",
            }
            body = _as_cbor({"__type": self.code, "message": self.message})
        else:
            content = {"message": self.message, "Message": self.message, **self.more}
            headers["Content-Type"] = JSON_TYPE
            if self.names_itself:
                headers["x-amzn-ErrorType"] = self.code
                content = {"__type": self.code, **content}
            body = json.dumps(content).encode()
        headers["Content-Length"] = str(len(body))
        reason = http.client.responses.get(self.status, self.code)
        return f"{self.status} {reason}", list(headers.items()), body

    def _as_xml(self, protocol: str, request: str) -> str:
        error = (
            f"<Code>{self.code}</Code><Message>{html.escape(self.message)}</Message>"
        )
        if protocol == "ec2":
            text = f"<Response><Errors><Error>{error}</Error></Errors>"
            text += f"<RequestID>{request}</RequestID></Response>"
        elif protocol == "rest-xml":
            text = f"<Error>{error}<RequestId>{request}</RequestId></Error>"
        else:
            text = f"<ErrorResponse><Error><Type>Sender</Type>{error}</Error>"
            text += f"<RequestId>{request}</RequestId></ErrorResponse>"
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'

    def answer(self, protocol: str, start_response: Callable) -> Iterable[bytes]:
        """Answer a WSGI request with it."""
        status, headers, body = self.as_response(protocol)
        start_response(status, headers)
        return [body]


def _as_cbor(texts: dict[str, str]) -> bytes:
    """Encode a map of a few texts (RFC 8949, section 3)."""
    encoded = bytes([CBOR_MAP | len(texts)])
    for text in (part for pair in texts.items() for part in pair):
        data = text.encode()
        encoded += struct.pack("!BI", CBOR_TEXT | CBOR_LENGTH_FOLLOWS, len(data)) + data
    return encoded


def invalid(message: str) -> AwsFault:
    """Return what SageMaker answers to what it cannot accept."""
    return AwsFault(400, "ValidationException", message)


def not_played(what: str, why: str = "") -> AwsFault:
    """Return the answer to a call that is not played; no SDK repeats a 501.

    botocore repeats 500, 502, 503 and 504 (`botocore/retries/standard.py` and
    `data/_retry.json`); 501 is what S3 itself answers to what it does not implement.
    """
    message = f"The offline AWS does not play {what}{why}. COURSE_AWS=real does."
    return AwsFault(501, "NotImplemented", message)


def too_long(most: int) -> AwsFault:
    """Return SageMaker's answer to a request of too many bytes; it names no code."""
    message = f"HTTP content length exceeded {most} bytes."
    return AwsFault(413, "413", message, names_itself=False)
