"""Requests, replies and problems, as they stand in the API's description.

No text of a problem repeats what the client sent. `describe` turns pydantic's findings
into such texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model

from .settings import Settings

MAX_TOKENS = 256
DEFAULT_TOKENS = 96
MAX_NOTES = 5
MAX_COMMENT = 1000
MAX_REQUEST_ID = 64

# code → status, and what people read
PROBLEMS: dict[str, tuple[int, str]] = {
    "bad_json": (400, "The body is not JSON in UTF-8."),
    "forbidden": (403, "The key is missing or wrong."),
    "not_found": (404, "There is nothing at this path."),
    "unknown_request": (404, "No answer with this request id is on record."),
    "method_not_allowed": (405, "This path does not take this method."),
    "too_large": (413, "The body is too large."),
    "unsupported_media_type": (415, "Send the body as application/json."),
    "invalid": (422, "Some fields cannot be used as they are."),
    "unknown_version": (422, "There is no version of this name."),
    "throttled": (429, "Too many requests. Ask again later."),
    "model_error": (502, "The model answered with an error."),
    "internal": (502, "The service failed. The request id leads to its log."),
    "unavailable": (503, "The service is not available now. Ask again later."),
    "timeout": (504, "This took too long. Ask again later."),
}


class Problem(Exception):
    """Why a request gets no answer.

    Attributes:
        code: one of `PROBLEMS`.
        fields: which fields are wrong, each with what is wrong about it.
        retry_after: seconds after which asking again makes sense.
        cause: for the log: kinds and statuses, never a text of the client or the model.
        headers: of the reply.
    """

    def __init__(
        self,
        code: str,
        *,
        fields: Iterable[tuple[str, str]] = (),
        retry_after: float | None = None,
        cause: str = "",
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(code)
        self.code = code
        self.status, self.message = PROBLEMS[code]
        self.fields = tuple(fields)
        self.retry_after = retry_after
        self.cause = cause
        self.headers = dict(headers or {})

    def body(self, request_id: str) -> dict[str, Any]:
        """Return the body of the reply."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "request_id": request_id,
                "fields": [
                    {"field": field, "problem": problem}
                    for field, problem in self.fields
                ],
            }
        }


# --- requests -------------------------------------------------------------------------


class Incoming(BaseModel):
    """What a client sends: no other types, no other fields, no echo in errors."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


def question_model(settings: Settings) -> type[BaseModel]:
    """Return the model of a question, whose limits are settings.

    Shown in lesson 07, section 3.
    """
    question = Annotated[
        str,
        StringConstraints(
            strip_whitespace=True, min_length=1, max_length=settings.max_question
        ),
        Field(description="What to answer. Spaces around it do not count."),
    ]
    return create_model(
        "Question",
        __base__=Incoming,
        __doc__="A question to the model.",
        question=question,
        version=(
            str | None,
            Field(None, description="A version's name; null for the live traffic."),
        ),
        retrieve=(
            int,
            Field(
                settings.retrieve,
                ge=0,
                le=MAX_NOTES,
                description="How many notes to answer from.",
            ),
        ),
        max_tokens=(
            int,
            Field(
                DEFAULT_TOKENS,
                ge=1,
                le=MAX_TOKENS,
                description="Tokens after which the answer is cut off.",
            ),
        ),
        stream=(
            bool,
            Field(False, description="Send the answer as server-sent events."),
        ),
    )


class Feedback(Incoming):
    """What a reader thinks of an answer; the last one of a request counts."""

    request_id: str = Field(min_length=1, max_length=MAX_REQUEST_ID)
    thumb: Literal["up", "down"]
    comment: str = Field("", max_length=MAX_COMMENT)


# --- replies --------------------------------------------------------------------------


class Source(BaseModel):
    """A note that the answer rests on."""

    id: str


class Tokens(BaseModel):
    """How many tokens were read and written."""

    prompt: int
    completion: int


class AnswerReply(BaseModel):
    """A whole answer."""

    request_id: str
    answer: str
    version: str
    variant: str
    sources: list[Source]
    finish_reason: Literal["stop", "length"]
    tokens: Tokens
    latency_ms: float


class FeedbackReply(BaseModel):
    """The feedback is in the table."""

    request_id: str
    stored: Literal[True]


class HealthReply(BaseModel):
    """Whether the service answers, and whether it lets questions through."""

    status: Literal["ok", "degraded"]
    breaker: Literal["closed", "open", "half-open"]


class VersionReply(BaseModel):
    """A version that can be asked by name."""

    name: str
    description: str


class VersionsReply(BaseModel):
    """All versions, and those that the live traffic may get."""

    versions: list[VersionReply]
    live: list[str]


class FieldReply(BaseModel):
    """A field that cannot be used as it is."""

    field: str
    problem: str


class ErrorReply(BaseModel):
    """What went wrong."""

    code: Literal[tuple(PROBLEMS)]  # type: ignore[valid-type]
    message: str
    request_id: str
    fields: list[FieldReply]


class ProblemReply(BaseModel):
    """The body of every error."""

    error: ErrorReply


def describe(
    errors: Iterable[Mapping[str, Any]], known: Iterable[str]
) -> list[tuple[str, str]]:
    """Return which fields are wrong, and how, without what the client sent.

    Args:
        errors: pydantic's findings.
        known: names of the request's fields. A name that is not among them is the
            client's own, and it stays out.
    """
    known = list(known)
    found: list[tuple[str, str]] = []
    for error in errors:
        place = [part for part in error["loc"] if part != "body"]
        if error["type"] == "extra_forbidden":
            expected = ", ".join(known)
            one = ("body", f"Holds a field that is not known. Known are {expected}.")
        else:
            field = str(place[0]) if place and place[0] in known else "body"
            one = (field, error["msg"])
        if one not in found:
            found.append(one)
    return found
