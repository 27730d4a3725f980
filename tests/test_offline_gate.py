"""Nobody but this run's own clients runs anything through the offline AWS."""

from __future__ import annotations

import datetime
import http.client
import io
import json
import os
import socket
import tarfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from support.endpoints import ECHO, IMAGE, LONG, deploy
from utils.deployment.aws import DeploymentError, wait_until_in_service
from utils.offline_aws import http_server
from utils.offline_aws.control_plane import OfflineAws
from utils.offline_aws.signatures import Key

# --- signatures -----------------------------------------------------------------------

CALLS = {
    "json": ("sagemaker", lambda client: client.list_models()),
    "query": ("sts", lambda client: client.get_caller_identity()),
    "rest-json": (
        "sagemaker-runtime",
        lambda client: client.invoke_endpoint(EndpointName="a", Body=b"1"),
    ),
    "rest-xml": ("s3", lambda client: client.list_buckets()),
    "cbor": ("cloudwatch", lambda client: client.list_metrics()),
    "ec2": ("ec2", lambda client: client.describe_instances()),
}
UNKNOWN = {"s3": "InvalidAccessKeyId"}


def client_with(service: str, access: str, secret: str, **more):
    session = boto3.Session(access, secret, region_name="us-east-1", **more)
    return session.client(service, config=Config(retries={"total_max_attempts": 1}))


@pytest.mark.parametrize("protocol", CALLS)
def test_another_key_is_refused_with_aws_own_error(aws, protocol) -> None:
    service, call = CALLS[protocol]
    for access in ("offline", "AKIAIOSFODNN7EXAMPLE", Key.new().access):
        with pytest.raises(ClientError) as failure:
            call(client_with(service, access, "secret"))
        error = failure.value.response
        assert error["ResponseMetadata"]["HTTPStatusCode"] == 403
        assert error["Error"]["Code"] == UNKNOWN.get(service, "InvalidClientTokenId")


@pytest.mark.parametrize("protocol", CALLS)
def test_the_right_key_with_another_secret_is_refused(aws, protocol) -> None:
    service, call = CALLS[protocol]
    with pytest.raises(ClientError) as failure:
        call(client_with(service, OfflineAws.running().key.access, "secret"))
    error = failure.value.response
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert error["Error"]["Code"] == "SignatureDoesNotMatch"
    assert "does not match the signature you provided" in error["Error"]["Message"]


@pytest.mark.parametrize("protocol", ["json", "query", "rest-json", "rest-xml"])
def test_unsigned_calls_are_refused(aws, protocol) -> None:
    service, call = CALLS[protocol]
    client = aws.session.client(service)
    client.meta.events.register("choose-signer", lambda **_: None)
    client.meta.events.register(
        "before-send", lambda request, **_: request.headers.__delitem__("Authorization")
    )
    with pytest.raises(ClientError) as failure:
        call(client)
    assert failure.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert failure.value.response["Error"]["Code"] == "MissingAuthenticationToken"


def signed_request(
    key: Key, body: bytes = b"{}", service: str = "sagemaker", when=None, **headers
) -> tuple[str, dict[str, str]]:
    """Return address and headers of a ListModels, signed with a key at a moment."""
    url = OfflineAws.running().url + "/"
    request = AWSRequest(
        method="POST",
        url=url,
        data=body,
        headers={
            "Content-Type": "application/x-amz-json-1.1",
            "X-Amz-Target": "SageMaker.ListModels",
            "Host": urllib.parse.urlsplit(url).netloc,
            **headers,
        },
    )
    auth = SigV4Auth(Credentials(key.access, key.secret), service, "us-east-1")
    when = when or datetime.datetime.now(datetime.UTC)
    request.context["timestamp"] = when.strftime("%Y%m%dT%H%M%SZ")
    auth._modify_request_before_signing(request)
    text = auth.string_to_sign(request, auth.canonical_request(request))
    auth._inject_signature_to_request(request, auth.signature(text, request))
    return url, dict(request.headers.items())


def post(url: str, headers: dict[str, str], body: bytes = b"{}"):
    """Send a request; return status, headers and body of the answer."""
    host = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(host.netloc, timeout=LONG)
    connection.putrequest("POST", host.path, skip_host=True, skip_accept_encoding=True)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    reply = connection.getresponse()
    found = reply.status, dict(reply.getheaders()), reply.read()
    connection.close()
    return found


def test_a_request_signed_by_hand_passes(aws) -> None:
    status, _, body = post(*signed_request(OfflineAws.running().key))
    assert status == 200, body
    assert json.loads(body) == {"Models": []}


@pytest.mark.parametrize("minutes", [-6, 6, -600])
def test_stale_signatures_are_refused(aws, minutes) -> None:
    """A request that someone has noted down cannot be sent again later."""
    when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
    status, _, body = post(*signed_request(OfflineAws.running().key, when=when))
    assert status == 403
    assert "Signature expired" in json.loads(body)["message"]


def test_a_changed_body_or_header_is_refused(aws) -> None:
    key = OfflineAws.running().key
    url, headers = signed_request(key)
    assert post(url, headers, b'{"MaxResults": 1}')[0] == 403
    changed = {**headers, "X-Amz-Target": "SageMaker.ListEndpoints"}
    assert post(url, changed)[0] == 403
    without_host = {**headers}
    without_host["Authorization"] = headers["Authorization"].replace("host;", "")
    assert post(url, without_host)[0] == 403


def test_each_run_has_a_key_of_its_own() -> None:
    keys = {Key.new() for _ in range(20)}
    assert len({key.access for key in keys}) == len({key.secret for key in keys}) == 20
    # What moto takes for an access key, and no form that AWS gives out.
    assert all(len(key.access) == 20 for key in keys)
    assert not any(key.access.startswith(("AKIA", "ASIA")) for key in keys)


def test_secrets_of_a_run_are_not_shown(aws) -> None:
    key = OfflineAws.running().key
    assert key.secret not in repr(aws) + repr(key)


# --- presigned addresses --------------------------------------------------------------


@pytest.mark.parametrize("version", [None, "s3v4"])
def test_presigned_addresses_work_until_they_end(aws, guard, version) -> None:
    """With boto3's default, signature version 2, and with version 4."""
    client = aws.session.client("s3", config=Config(signature_version=version))
    key = f"{guard.run}/a name é"
    aws.session.client("s3").put_object(Bucket=aws.bucket, Key=key, Body=b"content")
    where = {"Bucket": aws.bucket, "Key": key}
    url = client.generate_presigned_url("get_object", Params=where)
    assert urllib.request.urlopen(url).read() == b"content"
    for broken in (url.replace("Signature=", "Signature=0"), url.split("?")[0]):
        assert refused(broken) == 403
    other = client.generate_presigned_url("get_object", {**where, "Key": "other"})
    query = urllib.parse.urlsplit(other).query
    assert refused(url.split("?")[0] + "?" + query) == 403
    short = client.generate_presigned_url("get_object", Params=where, ExpiresIn=1)
    time.sleep(2.1)
    assert refused(short) == 403


def refused(url: str) -> int:
    """Return the status with which an address is refused."""
    with pytest.raises(urllib.error.HTTPError) as failure:
        urllib.request.urlopen(url)
    return failure.value.code


# --- foreign pages --------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1"])
def test_a_foreign_host_is_refused(aws, host) -> None:
    """A page's own name that its owner points to 127.0.0.1 (DNS rebinding)."""
    key = OfflineAws.running().key
    url, headers = signed_request(key, Host=host or "x")
    status, _, body = post(url, {**headers, "Host": host})
    assert status == 403
    assert b"is not this offline AWS's" in body


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1"])
def test_a_foreign_origin_is_refused(aws, origin) -> None:
    url, headers = signed_request(OfflineAws.running().key)
    status, found, body = post(url, {**headers, "Origin": origin})
    assert status == 403
    assert b"no other page" in body
    assert not [name for name in found if name.lower().startswith("access-control")]


def test_no_answer_opens_itself_to_other_origins(aws) -> None:
    key = OfflineAws.running().key
    own = OfflineAws.running().url
    url, headers = signed_request(key)
    status, found, _ = post(url, {**headers, "Origin": own})
    assert status == 200
    assert not [name for name in found if name.lower().startswith("access-control")]
    s3 = aws.session.client("s3")
    s3.put_bucket_cors(
        Bucket=aws.bucket,
        CORSConfiguration={
            "CORSRules": [{"AllowedMethods": ["GET"], "AllowedOrigins": ["*"]}]
        },
    )
    s3.put_object(Bucket=aws.bucket, Key="cors", Body=b"x")
    address = s3.generate_presigned_url(
        "get_object", {"Bucket": aws.bucket, "Key": "cors"}
    )
    request = urllib.request.Request(address, headers={"Origin": own})
    with urllib.request.urlopen(request) as reply:
        assert not [n for n in reply.headers if n.lower().startswith("access-control")]
    s3.delete_object(Bucket=aws.bucket, Key="cors")
    s3.delete_bucket_cors(Bucket=aws.bucket)
    preflight = urllib.request.Request(own + "/", method="OPTIONS")
    preflight.add_header("Origin", own)
    preflight.add_header("Access-Control-Request-Method", "POST")
    with pytest.raises(urllib.error.HTTPError) as failure:
        urllib.request.urlopen(preflight)
    names = [name.lower() for name in failure.value.headers]
    assert not [name for name in names if name.startswith("access-control")]


@pytest.mark.parametrize(
    "path",
    ["/moto-api/", "/moto-api/data.json", "/latest/meta-data/iam", "/favicon.ico"],
)
def test_moto_has_no_pages_of_its_own(aws, path) -> None:
    assert refused(OfflineAws.running().url + path) == 403
    request = urllib.request.Request(
        OfflineAws.running().url + "/moto-api/reset", method="POST"
    )
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(request)
    assert aws.session.client("s3").list_buckets()["Buckets"]


# --- connections ----------------------------------------------------------------------


def connect() -> socket.socket:
    host, _, port = OfflineAws.running().server.address.partition(":")
    return socket.create_connection((host, int(port)), timeout=LONG)


@pytest.mark.parametrize(
    "beginning",
    [b"", b"POST / HT", b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: b"],
)
def test_half_open_connections_are_closed(aws, monkeypatch, beginning) -> None:
    monkeypatch.setattr(http_server, "HEADER_SECONDS", 0.5)
    with connect() as connection:
        connection.sendall(beginning)
        assert connection.recv(1000) == b""


def test_bytes_that_trickle_in_do_not_keep_a_connection(aws, monkeypatch) -> None:
    monkeypatch.setattr(http_server, "HEADER_SECONDS", 1)
    with connect() as connection:
        started = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - started < LONG:
                connection.sendall(b"P")
                time.sleep(0.1)
        assert time.monotonic() - started < 10


def test_a_body_that_does_not_come_is_given_up(aws, monkeypatch) -> None:
    monkeypatch.setattr(http_server, "IDLE_SECONDS", 0.5)
    _, headers = signed_request(OfflineAws.running().key)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(["POST / HTTP/1.1", *lines, "Content-Length: 100", "", "{}"])
    with connect() as connection:
        connection.sendall(head.encode())
        started = time.monotonic()
        while connection.recv(1000):
            pass
        assert time.monotonic() - started < 10


def test_a_refused_request_is_not_waited_for(aws, monkeypatch) -> None:
    """Nor does its body come into memory: it is refused by its first lines."""
    monkeypatch.setattr(http_server, "REFUSED_SECONDS", 0.5)
    _, headers = signed_request(Key.new())
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(["POST / HTTP/1.1", *lines, "Content-Length: 9999999", "", "{}"])
    with connect() as connection:
        connection.sendall(head.encode())
        started = time.monotonic()
        answer = b""
        while part := connection.recv(1000):
            answer += part
        assert b" 403 " in answer and b"InvalidClientTokenId" in answer
        assert time.monotonic() - started < 5


def test_threads_are_bounded_and_given_back(aws, monkeypatch) -> None:
    monkeypatch.setattr(http_server, "HEADER_SECONDS", 2)
    before = threading.active_count()
    idle = [connect() for _ in range(http_server.MOST_CONNECTIONS + 60)]
    time.sleep(0.3)
    assert threading.active_count() - before <= http_server.MOST_CONNECTIONS + 1
    # Who comes after them waits until they are closed, and is served.
    assert aws.session.client("s3").list_buckets()["Buckets"]
    for connection in idle:
        connection.close()
    deadline = time.monotonic() + LONG
    while threading.active_count() > before + 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert threading.active_count() <= before + 2


# --- model data -----------------------------------------------------------------------


def pack(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize(
    "address",
    [
        "/etc/passwd",
        "build/model.tar.gz",
        "file:///etc/passwd",
        "http://127.0.0.1:1/model.tar.gz",
        "https://example.com/model.tar.gz",
        "s3://nosuch-bucket/model.tar.gz",
        "s3://BUCKET/nosuch.tar.gz",
        "s3://BUCKET/",
        "s3://BUCKET",
        "s3:///model.tar.gz",
        "S3://BUCKET/model.tar.gz",
    ],
)
@pytest.mark.parametrize("how", ["url", "source", "containers"])
def test_model_data_comes_from_the_own_s3_only(aws, guard, address, how) -> None:
    address = address.replace("BUCKET", aws.bucket)
    data = {"ModelDataUrl": address}
    if how == "source":
        source = {
            "S3Uri": address,
            "S3DataType": "S3Object",
            "CompressionType": "Gzip",
        }
        data = {"ModelDataSource": {"S3DataSource": source}}
    container = {"Image": IMAGE, **data}
    where = (
        {"Containers": [container, container]}
        if how == "containers"
        else {"PrimaryContainer": container}
    )
    client = aws.session.client("sagemaker")
    with pytest.raises(ClientError) as failure:
        client.create_model(
            ModelName=guard.name("m"), ExecutionRoleArn=aws.role, **where
        )
    assert failure.value.response["Error"]["Code"] == "ValidationException"
    assert client.list_models()["Models"] == []


def test_a_model_without_an_archive_serves_nothing(aws, guard) -> None:
    """It would otherwise be the folder in which this runs."""
    endpoint = deploy(aws, guard, None)
    with pytest.raises(DeploymentError, match="no archive.*give it a ModelDataUrl"):
        wait_until_in_service(aws, endpoint, say=lambda _: None)


def test_an_endpoint_with_such_an_archive_fails_and_writes_nothing(
    aws, guard, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    data = pack(
        (entry("model.py"), ECHO.encode()),
        (entry("a", tarfile.SYMTYPE, "/etc"), b""),
        (entry("a/evil"), b"x"),
    )
    key = f"{guard.run}/bad.tar.gz"
    aws.session.client("s3").put_object(Bucket=aws.bucket, Key=key, Body=data)
    endpoint = deploy(aws, guard, f"s3://{aws.bucket}/{key}")
    reason = "Failed to extract.*a: is a link to /etc"
    with pytest.raises(DeploymentError, match=reason):
        wait_until_in_service(aws, endpoint, say=lambda _: None)
    assert os.listdir(tmp_path) == []
