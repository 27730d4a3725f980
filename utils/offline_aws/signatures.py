"""Signatures of requests: who does not hold this run's key gets no further.

The key is drawn anew for each run and stands in the environment of this process and its
children only. A web page, or another user of the machine, does not know it. botocore's
own `SigV4Auth` computes the signature again, from what has arrived. The process is
described under "AWS Signature Version 4 for API requests" in the IAM user guide.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
import secrets
import tempfile
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field

from botocore.auth import (
    HmacV1QueryAuth,
    S3SigV4Auth,
    S3SigV4QueryAuth,
    SigV4Auth,
    SigV4QueryAuth,
)
from botocore.awsrequest import AWSRequest
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials

from utils.offline_aws.errors import AwsFault, too_long

AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256\s+Credential=(?P<credential>[^,\s]+)\s*,\s*"
    r"SignedHeaders=(?P<headers>[^,\s]+)\s*,\s*Signature=(?P<signature>[0-9a-f]{64})"
)
MOMENT = "%Y%m%dT%H%M%SZ"
ALLOWED_SKEW = datetime.timedelta(minutes=5)  # IAM user guide, as above
S3_ALLOWED_SKEW = datetime.timedelta(minutes=15)  # S3's RequestTimeTooSkewed
LONGEST_PRESIGNED = 7 * 24 * 3600  # seconds; S3 user guide, "presigned URLs"
# Bodies of calls other than S3's: 6,291,456 bytes of an invocation are the longest.
LONGEST_BODY = 16 * 1024**2
LONGEST_S3_BODY = 5 * 1024**3  # of one PUT; S3 user guide, "Uploading objects"
KEPT_IN_MEMORY = 16 * 1024**2
PART = 1024**2
UNHASHED = ("UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")


@dataclass(frozen=True)
class Key:
    """An access key: its public half, and its secret one."""

    access: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> Key:
        """Draw one; its public half says where it is good for something."""
        return cls("OFFLINE" + secrets.token_hex(7).upper()[:13], secrets.token_hex(20))


@dataclass(frozen=True)
class Signed:
    """What a request says of its signature.

    Attributes:
        credential: access key, day, region, service and "aws4_request".
        headers: names of the headers that are signed.
        signature: in hexadecimal digits.
        moment: when it was signed.
        lasts: seconds for which a presigned URL holds; None if it is no such thing.
    """

    credential: tuple[str, ...]
    headers: tuple[str, ...]
    signature: str
    moment: str
    lasts: int | None = None

    @property
    def service(self) -> str:
        """The name under which the service signs, in small letters."""
        return self.credential[3].lower()

    @property
    def region(self) -> str:
        """The region that the request is meant for."""
        return self.credential[2]


def read_signature(environ: dict) -> Signed | None:
    """Read the signature from the headers or the query; None if there is none."""
    if found := AUTHORIZATION.fullmatch(environ.get("HTTP_AUTHORIZATION", "").strip()):
        moment = environ.get("HTTP_X_AMZ_DATE", "")
        credential, headers, signature, lasts = *found.groups(), None
    else:
        query = dict(urllib.parse.parse_qsl(environ.get("QUERY_STRING", "")))
        if query.get("X-Amz-Algorithm") != "AWS4-HMAC-SHA256":
            return None
        try:
            lasts = int(query.get("X-Amz-Expires", ""))
        except ValueError:
            return None
        credential = query.get("X-Amz-Credential", "")
        headers = query.get("X-Amz-SignedHeaders", "")
        signature, moment = query.get("X-Amz-Signature", ""), query.get("X-Amz-Date")
    parts = tuple((credential or "").split("/"))
    if len(parts) != 5 or not moment:
        return None
    return Signed(parts, tuple(headers.split(";")), signature, moment, lasts)


def check_signature(environ: dict, key: Key) -> Signed:
    """Refuse a request that was not signed with the key, today and for itself.

    The body is read only if the rest may be right; then `wsgi.input` holds it anew.

    Args:
        environ: of WSGI, with REQUEST_URI as werkzeug sets it.
        key: this run's.

    Returns:
        What the signature says.

    Raises:
        AwsFault: with AWS's own error.
    """
    signed = read_signature(environ) or _old_presigned(environ, key)
    if signed is None:
        raise _refusal("missing", "")
    if not signed.moment:  # the old form, which is checked already
        return signed
    service = signed.service
    if not hmac.compare_digest(signed.credential[0].encode(), key.access.encode()):
        raise _refusal("unknown key", service)
    if environ.get("HTTP_X_AMZ_SECURITY_TOKEN"):
        raise _refusal("unknown key", service)
    _check_time(signed)
    if "host" not in signed.headers:
        raise _refusal("wrong", service)
    url = f"{environ['wsgi.url_scheme']}://{environ['HTTP_HOST']}"
    url += _without_signature(environ.get("REQUEST_URI", ""))
    headers = {name: _header(environ, name) for name in signed.headers}
    stated = _header(environ, "x-amz-content-sha256")
    digest = stated if stated in UNHASHED else _digest_of_body(environ, service)
    if stated and stated not in UNHASHED and stated != digest:
        if not stated.startswith("STREAMING-AWS4-HMAC-SHA256-PAYLOAD"):
            raise _refusal("wrong body", service)
        digest = stated  # parts signed one by one; their lengths are moto's matter
    if signed.lasts is not None and service == "s3":
        digest = UNHASHED[0]
    expected = _signature(environ["REQUEST_METHOD"], url, headers, digest, signed, key)
    if not hmac.compare_digest(expected, signed.signature):
        raise _refusal("wrong", service)
    return signed


class _UntilAuth(HmacV1QueryAuth):
    """Signature version 2 with the moment at which it ends, not the seconds left."""

    def _get_date(self) -> str:
        return str(self._expires)


def _old_presigned(environ: dict, key: Key) -> Signed | None:
    """Check a presigned URL of S3 with signature version 2, boto3's default.

    Raises:
        AwsFault: if it is one, and is not right.
    """
    query = dict(urllib.parse.parse_qsl(environ.get("QUERY_STRING", "")))
    if not {"AWSAccessKeyId", "Signature", "Expires"} <= set(query):
        return None
    if not hmac.compare_digest(query["AWSAccessKeyId"].encode(), key.access.encode()):
        raise _refusal("unknown key", "s3")
    if not query["Expires"].isdigit() or int(query["Expires"]) < time.time():
        raise AwsFault(403, "AccessDenied", "Request has expired")
    headers = HTTPHeaders()
    for name in ("content-type", "content-md5"):
        if value := _header(environ, name):
            headers[name] = value
    for name in environ:
        if name.startswith("HTTP_X_AMZ_"):
            short = name.removeprefix("HTTP_").replace("_", "-").lower()
            headers[short] = environ[name]
    auth = _UntilAuth(Credentials(key.access, key.secret), int(query["Expires"]))
    split = urllib.parse.urlsplit(environ.get("REQUEST_URI", ""))
    expected = auth.get_signature(environ["REQUEST_METHOD"], split, headers)
    if not hmac.compare_digest(expected.encode(), query["Signature"].encode()):
        raise _refusal("wrong", "s3")
    return Signed((key.access, "", "us-east-1", "s3", ""), (), "", "")


def _check_time(signed: Signed) -> None:
    """Refuse what was signed too long ago, or for a time to come."""
    now = datetime.datetime.now(datetime.UTC)
    try:
        moment = datetime.datetime.strptime(signed.moment, MOMENT)
    except ValueError:
        raise _refusal("wrong", signed.service) from None
    moment = moment.replace(tzinfo=datetime.UTC)
    skew = S3_ALLOWED_SKEW if signed.service == "s3" else ALLOWED_SKEW
    if signed.credential[1] != signed.moment[:8]:
        raise _refusal("wrong", signed.service)
    if signed.lasts is None:
        if abs(now - moment) > skew:
            raise _refusal("stale", signed.service, signed.moment, now)
    elif not 0 < signed.lasts <= LONGEST_PRESIGNED or not (
        moment - skew <= now <= moment + datetime.timedelta(seconds=signed.lasts)
    ):
        raise AwsFault(403, "AccessDenied", "Request has expired")


def _without_signature(uri: str) -> str:
    """Take the signature out of a presigned URL, in which it was not yet signed."""
    path, question, query = uri.partition("?")
    parts = [p for p in query.split("&") if not p.startswith("X-Amz-Signature=")]
    return path + (question and "?" + "&".join(parts))


def _header(environ: dict, name: str) -> str:
    key = name.upper().replace("-", "_")
    if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        key = f"HTTP_{key}"
    return environ.get(key, "")


def _digest_of_body(environ: dict, service: str) -> str:
    """Read the body, keep it for whoever comes next, and return its SHA-256."""
    longest = LONGEST_S3_BODY if service == "s3" else LONGEST_BODY
    length = environ.get("CONTENT_LENGTH") or "0"
    source = environ["wsgi.input"]
    chunked = environ.get("wsgi.input_terminated", False)
    if not length.isdigit() or int(length) > longest:
        raise too_long(longest)
    rest = longest if chunked else int(length)
    kept = tempfile.SpooledTemporaryFile(KEPT_IN_MEMORY)  # noqa: SIM115 - WSGI's
    digest = hashlib.sha256()
    while rest > 0 and (part := source.read(min(PART, rest))):
        digest.update(part)
        kept.write(part)
        rest -= len(part)
    if rest > 0 and not chunked:
        raise AwsFault(400, "IncompleteBody", "The body is shorter than announced.")
    environ["CONTENT_LENGTH"] = str(kept.tell())
    kept.seek(0)
    environ["wsgi.input"] = kept
    return digest.hexdigest()


def _signature(
    method: str,
    url: str,
    headers: dict[str, str],
    digest: str,
    signed: Signed,
    key: Key,
) -> str:
    """Compute the signature that the request should carry."""
    kinds: dict[tuple[bool, bool], Callable] = {
        (True, True): S3SigV4QueryAuth,
        (True, False): S3SigV4Auth,
        (False, True): SigV4QueryAuth,
        (False, False): SigV4Auth,
    }
    kind = kinds[signed.service == "s3", signed.lasts is not None]
    auth = kind(
        Credentials(key.access, key.secret), signed.credential[3], signed.region
    )
    request = AWSRequest(method=method, url=url, headers=headers)
    request.context["timestamp"] = signed.moment
    canonical = auth.canonical_request(request).rpartition("\n")[0]
    text = auth.string_to_sign(request, f"{canonical}\n{digest}")
    return auth.signature(text, request)


def _refusal(
    why: str, service: str, moment: str = "", now: datetime.datetime | None = None
) -> AwsFault:
    """Return AWS's error for a signature; codes and texts by service.

    Sources: "Common errors" in the API references of SageMaker and IAM, "Error
    responses" in that of S3.
    """
    if service == "s3":
        code, message = {
            "unknown key": (
                "InvalidAccessKeyId",
                "The AWS Access Key Id you provided does not exist in our records.",
            ),
            "stale": (
                "RequestTimeTooSkewed",
                "The difference between the request time and the current time is too "
                "large.",
            ),
            "wrong body": (
                "XAmzContentSHA256Mismatch",
                "The provided 'x-amz-content-sha256' header does not match what was "
                "computed.",
            ),
        }.get(
            why,
            (
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you "
                "provided. Check your key and signing method.",
            ),
        )
        return AwsFault(403, code, message)
    if why == "missing":
        return AwsFault(
            403, "MissingAuthenticationToken", "Request is missing Authentication Token"
        )
    if why == "unknown key":
        return AwsFault(
            403,
            "InvalidClientTokenId",
            "The security token included in the request is invalid.",
        )
    if why == "stale" and now is not None:
        earliest = (now - ALLOWED_SKEW).strftime(MOMENT)
        return AwsFault(
            403,
            "SignatureDoesNotMatch",
            f"Signature expired: {moment} is now earlier than {earliest} "
            f"({now.strftime(MOMENT)} - 5 min.)",
        )
    return AwsFault(
        403,
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match the signature you "
        "provided. Check your AWS Secret Access Key and signing method. Consult the "
        "service documentation for details.",
    )
