"""Connects to AWS: to the real one, or to an offline one on this machine.

The offline AWS has two halves. Control plane: moto's server in a thread of this
process, on 127.0.0.1, mended where the course needs what moto lacks. Data plane: for
each endpoint a process that fetches the artifact from that S3 and serves it as DJL
Serving would (`utils.djl_python`). Both end with this process, however it ends.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import logging
import os
import random
import re
import secrets
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from utils.course import ROOT, CourseError, RunConfig
from utils.machine import openmp_environment

if TYPE_CHECKING:
    import boto3

OFFLINE_REGION = "us-east-1"
OFFLINE_ACCOUNT = "123456789012"
OFFLINE_BUCKET = "course-on-this-machine"
OFFLINE_ROLE = "course-sagemaker-execution"
ROLE_VARIABLE = "SAGEMAKER_ROLE_ARN"
BUCKET_VARIABLE = "SAGEMAKER_BUCKET"

INSTANCE_TYPE = re.compile(r"ml\.[a-z][a-z0-9-]*\.(\d*x?large|medium|metal[-\w]*)")
HEALTH_CHECK_TIMEOUT = 480  # seconds, when the variant names none
HEALTH_CHECK_INTERVAL = 0.5
INVOKE_TIMEOUT = 60  # seconds, as on SageMaker
DRAIN_TIMEOUT = 60  # seconds that replaced containers have to answer what they have
INVOCATIONS = re.compile(
    r"/endpoints/(?P<name>[^/]+)/invocations(?P<stream>-response-stream)?"
)
CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
LOG_GROUPS = "/aws/sagemaker/Endpoints/"  # SageMaker makes one for each endpoint
MOST_BYTES_IN_AN_EVENT = 64 * 1024
EVENT_HEADER_IS_TEXT = 7
PAYLOAD_PART = {
    ":event-type": "PayloadPart",
    ":content-type": "application/octet-stream",
}
TIMED_OUT = (
    "Your invocation timed out while waiting for a response from container primary. "
    "Review the latency metrics for each container in Amazon CloudWatch, resolve the "
    "issue, and try again."
)
LOG_LINES = 200
JOIN_TIMEOUT = 30  # seconds; a busy machine may take its time to write the log
TRIES_OF_A_HANGING_WORKER = 3

# What could lead a client elsewhere, or to other credentials, is taken away.
MISLEADING = re.compile(
    r"AWS_(ENDPOINT_URL.*|PROFILE|DEFAULT_PROFILE|SESSION_TOKEN|SECURITY_TOKEN|ROLE_.*"
    r"|WEB_IDENTITY_.*|CONTAINER_.*|USE_.*_ENDPOINT|CA_BUNDLE)"
)


class AwsError(CourseError):
    """AWS cannot be used as it is set up; the message says what to change."""


@dataclass(frozen=True)
class Aws:
    """What a notebook needs of AWS.

    Attributes:
        session: pass it to boto3 and, as `session=`, to the SageMaker SDK.
        region: where everything is created.
        role: ARN of the role that SageMaker assumes to read the artifact.
        bucket: where artifact and data go.
        real: whether this is the AWS that bills.
    """

    session: boto3.Session = field(repr=False)
    region: str
    role: str
    bucket: str
    real: bool = field(default=False, repr=False)


def connect(config: RunConfig) -> Aws:
    """Connects as `config.aws` says.

    Local: starts the offline AWS of this process, or returns the one that runs. From
    then on every AWS client of this process talks to it, whatever credentials the
    environment holds.

    Real: the account behind the usual boto3 credentials. The execution role comes from
    SAGEMAKER_ROLE_ARN, or is the role under which SageMaker Studio runs this; the
    bucket comes from SAGEMAKER_BUCKET, or is SageMaker's default one if it exists.

    Raises:
        AwsError: if credentials, region, role or bucket are missing.
    """
    if config.aws == "local":
        return OfflineAws.running().aws
    return connect_real()


# --- the real AWS --------------------------------------------------------------------


def connect_real() -> Aws:
    """See `connect`."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    if OfflineAws.current is not None:
        raise AwsError(
            "this process is connected to the offline AWS: restart the kernel to "
            "change to COURSE_AWS=real"
        )
    session = boto3.Session()
    if session.region_name is None:
        raise AwsError("no AWS region is set: set AWS_DEFAULT_REGION, say us-east-1")
    try:
        identity = session.client("sts").get_caller_identity()
    except (BotoCoreError, ClientError) as error:
        raise AwsError(
            f"COURSE_AWS=real needs AWS credentials, and there are none that work "
            f"({error}): run `aws configure sso`, or set COURSE_AWS=local"
        ) from error
    role = execution_role(session, identity["Arn"])
    bucket = artifact_bucket(session, identity["Account"])
    return Aws(session, session.region_name, role, bucket, real=True)


def execution_role(session: boto3.Session, caller: str) -> str:
    """The ARN of the role that SageMaker is to assume.

    The caller's own ARN would not do: a user cannot be assumed, and for a role under
    which someone is logged in it names the session, not the role.

    Raises:
        AwsError: if SAGEMAKER_ROLE_ARN is not set and the caller runs under no role.
    """
    from botocore.exceptions import ClientError

    given = os.environ.get(ROLE_VARIABLE, "").strip()
    if given:
        if not re.fullmatch(r"arn:aws[\w-]*:iam::\d{12}:role/.+", given):
            raise AwsError(
                f"{ROLE_VARIABLE} is {given!r}: expected a role's ARN such as "
                "arn:aws:iam::123456789012:role/SageMakerExecution"
            )
        return given
    assumed = re.fullmatch(r"arn:aws[\w-]*:sts::\d+:assumed-role/([^/]+)/.+", caller)
    if not assumed:
        raise AwsError(
            f"you are {caller}, which SageMaker cannot assume: set {ROLE_VARIABLE} to "
            "the ARN of a role that trusts sagemaker.amazonaws.com"
        )
    try:
        return session.client("iam").get_role(RoleName=assumed[1])["Role"]["Arn"]
    except ClientError as error:
        raise AwsError(
            f"the ARN of the role {assumed[1]} cannot be read ({error}): set "
            f"{ROLE_VARIABLE}"
        ) from error


def artifact_bucket(session: boto3.Session, account: str) -> str:
    """The bucket for artifact and data: one that is named, never one that is guessed.

    Raises:
        AwsError: if it does not exist, or belongs to another account.
    """
    from botocore.exceptions import ClientError

    default = f"sagemaker-{session.region_name}-{account}"
    name = os.environ.get(BUCKET_VARIABLE, "").strip() or default
    try:
        session.client("s3").head_bucket(Bucket=name, ExpectedBucketOwner=account)
    except ClientError as error:
        raise AwsError(
            f"the bucket {name} cannot be used ({error}): create a bucket in "
            f"{session.region_name} and name it in {BUCKET_VARIABLE}"
        ) from error
    return name


# --- the offline AWS: control plane --------------------------------------------------


class OfflineAws:
    """The offline AWS of this process. There is at most one."""

    current: OfflineAws | None = None
    lock = threading.RLock()

    @classmethod
    def running(cls) -> OfflineAws:
        """The one that runs, started if need be."""
        with cls.lock:
            if cls.current is None:
                cls.current = cls()
            return cls.current

    def __init__(self):
        from moto.moto_api._internal.models import moto_api_backend
        from moto.server import ThreadedMotoServer

        mend_moto()
        moto_api_backend.reset()
        for name in ("werkzeug", "sagemaker.config", "botocore.credentials"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.endpoints: dict[str, LocalEndpoint] = {}
        self.server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self.server.start()
        self.server._server.app = DataPlane(self.server._server.app, self)
        host, port = self.server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        self._environment = dict(os.environ)
        self._point_clients_here()
        atexit.register(self.close)
        self.aws = self._furnish()

    def _point_clients_here(self) -> None:
        """Makes every AWS client of this process and its children talk to `url`."""
        import boto3

        for name in [name for name in os.environ if MISLEADING.fullmatch(name)]:
            del os.environ[name]
        no_proxy = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
        os.environ |= {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false",
            "AWS_ACCESS_KEY_ID": "offline",
            "AWS_SECRET_ACCESS_KEY": "offline",
            "AWS_DEFAULT_REGION": OFFLINE_REGION,
            "AWS_REGION": OFFLINE_REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            # moto cannot simulate policies, with which the SDK would check the role.
            "SAGEMAKER_VALIDATE_ROLE": "false",
            "NO_PROXY": ",".join(filter(None, [no_proxy, "127.0.0.1"])),
            "no_proxy": ",".join(filter(None, [no_proxy, "127.0.0.1"])),
        }
        boto3.DEFAULT_SESSION = None
        forget_sdk_clients()

    def _furnish(self) -> Aws:
        """What a real account has from the start: a role and a bucket."""
        import boto3

        session = boto3.Session(region_name=OFFLINE_REGION)
        session.client("s3").create_bucket(Bucket=OFFLINE_BUCKET)
        trust = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"Service": "sagemaker.amazonaws.com"},
                    "Action": "sts:AssumeRole",
                }
            ],
        }
        role = session.client("iam").create_role(
            RoleName=OFFLINE_ROLE, AssumeRolePolicyDocument=json.dumps(trust)
        )
        return Aws(session, OFFLINE_REGION, role["Role"]["Arn"], OFFLINE_BUCKET)

    def close(self) -> None:
        """Stops every worker and the server, and puts the environment back."""
        with self.lock:
            if OfflineAws.current is not self:
                return
            OfflineAws.current = None
            for endpoint in self.endpoints.values():
                endpoint.stop()
            self.server.stop()
            os.environ.clear()
            os.environ |= self._environment
            forget_sdk_clients()
            atexit.unregister(self.close)


def forget_sdk_clients() -> None:
    """The SageMaker SDK keeps its clients: those made before may point elsewhere."""
    module = sys.modules.get("sagemaker.core.utils.utils")
    if module is not None:
        module.SageMakerClient.reset()


def mend_moto() -> None:
    """Gives moto what the course needs and it lacks; a second call changes nothing.

    - It echoes empty VpcConfig and DataCaptureConfig, which the SDK's types reject.
    - It knows no instance types of the last years.
    - It lets a name be taken twice.
    - Its endpoints are in service at once, with nothing behind them.
    - It cannot update an endpoint.
    """
    from moto.sagemaker import models
    from moto.sagemaker.responses import SageMakerResponse

    if getattr(SageMakerResponse, "update_endpoint", None) is _update_endpoint:
        return
    SageMakerResponse.update_endpoint = _update_endpoint
    models.FakeEndpointConfig.validate_instance_type = _check_instance_type
    for name in ("describe_model", "describe_endpoint", "describe_endpoint_config"):
        _wrap(SageMakerResponse, name, _without_empty)
    backend = models.SageMakerModelBackend
    _wrap(backend, "create_model", _with_free_name)
    _wrap(backend, "create_endpoint_config", _with_free_name)
    _wrap(backend, "create_endpoint", _with_worker)
    _wrap(backend, "describe_endpoint", _with_worker_status)
    _wrap(backend, "list_endpoints", _with_worker_status)
    _wrap(backend, "delete_endpoint", _with_worker_stopped)
    _wrap(backend, "update_endpoint_weights_and_capacities", _with_new_weights)


def _wrap(kind: type, name: str, replacement: Any) -> None:
    """Replaces a method by one that gets the original first, then the arguments."""
    original = getattr(kind, name)

    def method(self: Any, *positional: Any, **named: Any) -> Any:
        return replacement(original, self, *positional, **named)

    setattr(kind, name, method)


def _without_empty(describe: Any, response: Any) -> Any:
    answer = describe(response)
    unwanted = ("VpcConfig", "DataCaptureConfig", "AsyncInferenceConfig")
    content = answer.result
    answer._result = {k: v for k, v in content.items() if v or k not in unwanted}
    return answer


def _with_free_name(create: Any, backend: Any, **given: Any) -> Any:
    if "model_name" in given:
        _require_free("model", given["model_name"], backend._models)
    else:
        taken = backend.endpoint_configs
        _require_free("endpoint configuration", given["endpoint_config_name"], taken)
    return create(backend, **given)


def _with_worker(create: Any, backend: Any, endpoint_name: str, **given: Any) -> Any:
    _require_free("endpoint", endpoint_name, backend.endpoints)
    config_name = given["endpoint_config_name"]
    variants = _variants_of(backend, config_name)
    record = create(backend, endpoint_name=endpoint_name, **given)
    record.endpoint_status = "Creating"
    endpoint = LocalEndpoint(endpoint_name, config_name, variants)
    OfflineAws.running().endpoints[endpoint_name] = endpoint
    endpoint.start()
    return record


def _variants_of(backend: Any, config_name: str) -> list[Variant]:
    config = backend.describe_endpoint_config(config_name)
    return [
        Variant.of(variant, backend.describe_model(variant["ModelName"]))
        for variant in config["ProductionVariants"]
    ]


def _update_endpoint(response: Any) -> Any:
    """UpdateEndpoint: all traffic at once; a DeploymentConfig changes nothing here."""
    from moto.core.responses import ActionResult
    from moto.sagemaker.exceptions import ValidationError

    backend = response.sagemaker_backend
    name = response._get_param("EndpointName")
    config_name = response._get_param("EndpointConfigName")
    arn = backend.describe_endpoint(name)["EndpointArn"]
    endpoint = OfflineAws.running().endpoints[name]
    if endpoint.status == "Failed":
        raise ValidationError(
            message=f'Cannot update failed endpoint "{arn}": it can only be deleted.'
        )
    if endpoint.status != "InService":
        raise ValidationError(message=f'Cannot update in-progress endpoint "{arn}".')
    variants = _variants_of(backend, config_name)
    kept = response._get_param("RetainAllVariantProperties")
    excluded = response._get_param("ExcludeRetainedVariantProperties") or []
    if kept and {"VariantPropertyType": "DesiredWeight"} not in excluded:
        weights = {variant.name: variant.weight for variant in endpoint.variants}
        for variant in variants:
            variant.weight = weights.get(variant.name, variant.weight)
    endpoint.update(config_name, variants)
    return ActionResult({"EndpointArn": arn})


def _with_new_weights(update: Any, backend: Any, **given: Any) -> str:
    arn = update(backend, **given)
    endpoint = OfflineAws.running().endpoints[given["endpoint_name"]]
    for wanted in given["desired_weights_and_capacities"]:
        for variant in endpoint.variants:
            if variant.name == wanted["VariantName"]:
                variant.weight = float(wanted.get("DesiredWeight", variant.weight))
    return arn


def _with_worker_status(read: Any, backend: Any, *positional: Any, **named: Any) -> Any:
    for name, endpoint in list(OfflineAws.running().endpoints.items()):
        if record := backend.endpoints.get(name):
            record.endpoint_status = endpoint.status
            record.failure_reason = endpoint.failure_reason
            if record.endpoint_config_name != endpoint.config_name:
                record.endpoint_config_name = endpoint.config_name
                config = backend.endpoint_configs.get(endpoint.config_name)
                if config is not None:
                    record.production_variants = record._process_production_variants(
                        config.production_variants
                    )
    return read(backend, *positional, **named)


def _with_worker_stopped(delete: Any, backend: Any, endpoint_name: str) -> None:
    delete(backend, endpoint_name)
    if endpoint := OfflineAws.running().endpoints.pop(endpoint_name, None):
        endpoint.stop()


def _require_free(kind: str, name: str, taken: Any) -> None:
    from moto.sagemaker.exceptions import ValidationError

    if name in taken:
        raise ValidationError(
            message=f'Cannot create already existing {kind} "{name}".'
        )


def _check_instance_type(self: Any, instance_type: str) -> None:
    from moto.sagemaker.exceptions import ValidationError

    if not INSTANCE_TYPE.fullmatch(instance_type):
        raise ValidationError(
            message=f"Value '{instance_type}' at 'instanceType' failed to satisfy "
            "constraint: expected a type such as ml.g5.xlarge"
        )


# --- the offline AWS: data plane -----------------------------------------------------


class DataPlane:
    """Answers invocations; every other request goes on to moto.

    It stands before moto's server, because moto answers with a fixed text, and only
    when all of it is there: a stream has to be passed on as it comes.
    """

    def __init__(self, control_plane: Callable, offline: OfflineAws):
        self.control_plane = control_plane
        self.offline = offline

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        """Answers one request; this is a WSGI application."""
        path = INVOCATIONS.fullmatch(environ["PATH_INFO"])
        if path is None or environ["REQUEST_METHOD"] != "POST":
            return self.control_plane(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        headers = {
            key.removeprefix("HTTP_").replace("_", "-").lower(): value
            for key, value in environ.items()
            if key.startswith("HTTP_") or key == "CONTENT_TYPE"
        }
        with contextlib.ExitStack() as stack:
            try:
                headers, answer = self._invoke(
                    path["name"], bool(path["stream"]), body, headers, stack
                )
                status = "200 OK"
            except InvocationError as error:
                status, headers, answer = error.status, error.headers, [error.body]
            # The request counts as running until its last byte is passed on.
            answer = _Passing(answer, stack.pop_all())
        start_response(status, list(headers.items()))
        return answer

    def _invoke(
        self,
        name: str,
        wants_stream: bool,
        body: bytes,
        headers: dict[str, str],
        stack: contextlib.ExitStack,
    ) -> tuple[dict[str, str], Iterable[bytes]]:
        """
        Raises:
            InvocationError: with what AWS answers in its place.
        """
        endpoint = self.offline.endpoints.get(name)
        if endpoint is None or not endpoint.serves:
            raise InvocationError(
                400,
                "ValidationError",
                f"Endpoint {name} of account {OFFLINE_ACCOUNT} not found.",
            )
        target = headers.get("x-amzn-sagemaker-target-variant")
        variant = stack.enter_context(endpoint.lease(target))
        if variant is None:
            raise InvocationError(
                400,
                "ValidationError",
                "Could not find the requested production variant.",
            )
        accept = headers.get("x-amzn-sagemaker-accept") or headers.get("accept")
        forwarded = {
            "Content-Type": headers.get("content-type"),
            "Accept": accept,
            CUSTOM_ATTRIBUTES: headers.get(CUSTOM_ATTRIBUTES.lower()),
        }
        forwarded = {key: value for key, value in forwarded.items() if value}
        try:
            reply = stack.enter_context(variant.container.open(body, forwarded))
            if reply.status >= 300:
                raise _model_error(name, reply.status, reply.read())
            whole = None if wants_stream else reply.read()
        except TimeoutError:
            raise _model_error(name, 0, TIMED_OUT.encode()) from None
        except (OSError, http.client.HTTPException):
            raise InvocationError(
                503,
                "ServiceUnavailable",
                "The service is unavailable. Try your call again.",
            ) from None
        kept = {"x-Amzn-Invoked-Production-Variant": variant.name}
        if attributes := reply.headers.get(CUSTOM_ATTRIBUTES):
            kept[CUSTOM_ATTRIBUTES] = attributes
        content_type = reply.headers.get("content-type")
        if whole is None:
            kept["Content-Type"] = "application/vnd.amazon.eventstream"
            if content_type:
                kept["X-Amzn-SageMaker-Content-Type"] = content_type
            return kept, _as_events(reply)
        if content_type:
            kept["Content-Type"] = content_type
        return kept | {"Content-Length": str(len(whole))}, [whole]


class _Passing:
    """The parts of an answer; closes what it came from when they are through."""

    def __init__(self, parts: Iterable[bytes], resources: contextlib.ExitStack):
        self._parts = iter(parts)
        self._resources = resources

    def __iter__(self) -> Iterator[bytes]:
        return self._parts

    def close(self) -> None:
        """Called by the server at the end, also when the client has gone."""
        self._resources.close()


class InvocationError(Exception):
    """What AWS answers in place of the container's reply."""

    def __init__(self, status: int, code: str, message: str, **more: Any):
        super().__init__(message)
        self.status = f"{status} {http.client.responses.get(status, code)}"
        self.body = json.dumps({"Message": message, **more}).encode()
        self.headers = {
            "x-amzn-errortype": code,
            "Content-Type": "application/json",
            "Content-Length": str(len(self.body)),
        }


def _model_error(name: str, status: int, answer: bytes) -> InvocationError:
    """What AWS makes of a container's own error; status 0 is a time-out."""
    kind = "client" if 400 <= status < 500 else "server"
    text = answer.decode("utf-8", "replace")
    group = LOG_GROUPS + name
    return InvocationError(
        424,
        "ModelError",
        f'Received {kind} error ({status}) from primary with message "{text}". See '
        f"CloudWatch log group {group} in account {OFFLINE_ACCOUNT} for more "
        "information.",
        OriginalMessage=text,
        OriginalStatusCode=status,
        LogStreamArn=f"arn:aws:logs:{OFFLINE_REGION}:{OFFLINE_ACCOUNT}:"
        f"log-group:{group}",
    )


def _as_events(reply: http.client.HTTPResponse) -> Iterator[bytes]:
    """A container's reply as it comes, in AWS's encoding of event streams."""
    try:
        while part := reply.read1(MOST_BYTES_IN_AN_EVENT):
            yield encode_event({":message-type": "event", **PAYLOAD_PART}, part)
    except (OSError, http.client.HTTPException) as error:
        slow = isinstance(error, TimeoutError)
        problem = {
            "ErrorCode": "ModelInvocationTimeExceeded" if slow else "StreamBroken",
            "Message": TIMED_OUT if slow else "The model's connection was closed.",
        }
        headers = {
            ":message-type": "exception",
            ":exception-type": "ModelStreamError",
            ":content-type": "application/json",
        }
        yield encode_event(headers, json.dumps(problem).encode())


def encode_event(headers: dict[str, str], payload: bytes) -> bytes:
    """One message of `application/vnd.amazon.eventstream`.

    Lengths of message and headers with their checksum, the headers, the payload, and
    the checksum of it all. AWS describes it under "Event stream encoding" in the guide
    to Amazon Transcribe; botocore.eventstream decodes it.
    """
    encoded = b"".join(
        struct.pack("!B", len(name))
        + name.encode()
        + struct.pack("!BH", EVENT_HEADER_IS_TEXT, len(value.encode()))
        + value.encode()
        for name, value in headers.items()
    )
    around = 16  # two lengths and two checksums of four bytes
    prelude = struct.pack("!II", around + len(encoded) + len(payload), len(encoded))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + encoded + payload
    return message + struct.pack("!I", zlib.crc32(message))


class Container:
    """A process that serves one artifact as the DJL container would."""

    def __init__(self, model_data: str, environment: dict[str, str]):
        self.model_data = model_data
        self.environment = environment
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._not_shipped: deque[str] = deque(maxlen=LOG_LINES)
        self.port: int | None = None
        self.process: subprocess.Popen | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def start(self, timeout: float) -> str | None:
        """Starts the process and waits until it serves; returns why not, or None."""
        with self._lock:
            if self._stopped:
                return "deleted while it was being created"
            self.process = process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "utils.djl_python",
                    self.model_data,
                    "--port=0",
                    f"--give-up-after={TRIES_OF_A_HANGING_WORKER}",
                    "--end-with-parent",
                    "--announce",
                ],
                cwd=ROOT,
                env={
                    **os.environ,
                    **openmp_environment(os.environ),
                    **self.environment,
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # An interrupt in the notebook is not meant for the endpoint.
                start_new_session=True,
            )
        threading.Thread(
            target=self._read_log, args=(process.stderr,), daemon=True
        ).start()
        timer = threading.Timer(timeout, process.kill)
        started = time.monotonic()
        timer.start()
        try:
            line = process.stdout.readline()
        finally:
            timer.cancel()
        if not line and time.monotonic() - started < timeout:
            return (
                "the container's process ended before it was ready, with code "
                f"{process.wait()}; -9 is most often a lack of memory"
            )
        if not line:
            return f"the container was not ready after {timeout:.0f} s"
        status = json.loads(line)
        self.port = status.get("port")
        return status.get("error")

    def _read_log(self, stream: Any) -> None:
        for line in stream:
            text = line.decode("utf-8", "replace").rstrip()
            self.log.append(text)
            self._not_shipped.append(text)

    def take_log(self) -> list[str]:
        """The lines that came since it was last called."""
        lines = []
        with contextlib.suppress(IndexError):
            while True:
                lines.append(self._not_shipped.popleft())
        return lines

    @contextlib.contextmanager
    def open(
        self,
        body: bytes,
        headers: dict[str, str],
        method: str = "POST",
        path: str = "/invocations",
    ) -> Iterator[http.client.HTTPResponse]:
        """Sends a request; its reply can be read as it comes.

        Raises:
            TimeoutError: if no byte comes for INVOKE_TIMEOUT.
            OSError, http.client.HTTPException: if the container is not there.
        """
        if self.port is None:
            raise ConnectionRefusedError("not started")
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=INVOKE_TIMEOUT
        )
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            yield connection.getresponse()

    @property
    def healthy(self) -> bool:
        """Whether the container says of itself that it can serve."""
        try:
            with self.open(b"", {}, "GET", "/ping") as reply:
                return reply.status == 200
        except (OSError, http.client.HTTPException):
            return False

    def stop(self, for_good: bool = True) -> None:
        with self._lock:
            self._stopped = self._stopped or for_good
            process, self.port = self.process, None
        if process is not None:
            process.stdin.close()  # the process ends its workers and cleans up
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass
class Variant:
    """A production variant: a share of the traffic, and the container that gets it."""

    name: str
    weight: float
    container: Container
    health_check_timeout: float
    running: int = 0  # requests that it has not answered yet

    @classmethod
    def of(cls, variant: dict, model: Any) -> Variant:
        """From what CreateEndpointConfig and CreateModel were given."""
        container = model.primary_container or (model.containers or [{}])[0]
        return cls(
            name=variant["VariantName"],
            weight=float(variant.get("InitialVariantWeight", 1)),
            container=Container(
                container.get("ModelDataUrl", ""), container.get("Environment") or {}
            ),
            health_check_timeout=variant.get(
                "ContainerStartupHealthCheckTimeoutInSeconds", HEALTH_CHECK_TIMEOUT
            ),
        )


class LocalEndpoint:
    """An endpoint with its containers, from Creating to InService or Failed.

    An update starts the new containers beside the old ones. Once all of them serve, new
    requests go to them; the old ones answer what they have and stop. If one does not
    serve, the new ones stop, the old ones stay, and `failure_reason` says why.
    """

    def __init__(self, name: str, config_name: str, variants: list[Variant]):
        self.name = name
        self.config_name = config_name
        self.variants = variants
        self.status = "Creating"
        self.failure_reason: str | None = None
        self._traffic = threading.Condition()
        self._stopped = threading.Event()
        self._coming: list[Variant] = []
        self._threads = [threading.Thread(target=self._live, daemon=True)]

    def start(self) -> None:
        """Starts the containers, in a thread."""
        self._threads[0].start()

    @property
    def serves(self) -> bool:
        """Whether it takes requests."""
        return self.status in ("InService", "Updating")

    def _live(self) -> None:
        """Starts the containers, then replaces whichever stops answering /ping."""
        reason = self._start(self.variants)
        if self._stopped.is_set():
            return
        self._ship_log(self.variants)
        if reason is not None:
            for variant in self.variants:
                variant.container.stop()
            self.failure_reason = reason
            self.status = "Failed"
            return
        self.status = "InService"
        while not self._stopped.wait(HEALTH_CHECK_INTERVAL):
            for variant in self.variants:
                if not variant.container.healthy and not self._stopped.is_set():
                    variant.container.stop(for_good=False)
                    variant.container.start(variant.health_check_timeout)
                    self._ship_log([variant])

    def _start(self, variants: list[Variant]) -> str | None:
        """Starts containers, all at once; returns why one does not serve, or None."""
        reasons: list[str] = []

        def start(variant: Variant) -> None:
            reason = variant.container.start(variant.health_check_timeout)
            if reason is None:
                return
            reasons.append(
                f"The primary container for production variant {variant.name} did not "
                "pass the ping health check. Please check CloudWatch logs for this "
                f"endpoint. The worker's log says: {reason}"
            )
            for other in variants:
                other.container.stop()

        threads = [
            threading.Thread(target=start, args=(variant,), daemon=True)
            for variant in variants
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return reasons[0] if reasons else None

    def update(self, config_name: str, variants: list[Variant]) -> None:
        """Moves the traffic to other containers, in a thread.

        Args:
            config_name: of the configuration that they come from.
            variants: the new ones.
        """
        self.status = "Updating"
        self.failure_reason = None
        self._coming = variants
        thread = threading.Thread(target=self._move, args=(config_name, variants))
        thread.daemon = True
        self._threads.append(thread)
        thread.start()

    def _move(self, config_name: str, coming: list[Variant]) -> None:
        reason = self._start(coming)
        self._ship_log(coming)
        with self._traffic:
            self._coming = []
            leaving = coming
            if reason is None and not self._stopped.is_set():
                leaving, self.variants = self.variants, coming
                self.config_name = config_name
            self._traffic.wait_for(
                lambda: (
                    self._stopped.is_set()
                    or not any(variant.running for variant in leaving)
                ),
                DRAIN_TIMEOUT,
            )
        for variant in leaving:
            variant.container.stop()
        if not self._stopped.is_set():
            self.failure_reason = reason
            self.status = "InService"

    def _ship_log(self, variants: list[Variant]) -> None:
        """Writes the log to CloudWatch, as SageMaker does: a stream per variant."""
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        group = LOG_GROUPS + self.name
        now = int(time.time() * 1000)
        # The endpoint serves without its log; the account may be closing.
        with contextlib.suppress(BotoCoreError, ClientError):
            client = boto3.Session(region_name=OFFLINE_REGION).client("logs")
            with contextlib.suppress(client.exceptions.ResourceAlreadyExistsException):
                client.create_log_group(logGroupName=group)
            for variant in variants:
                stream = f"{variant.name}/{secrets.token_hex(8)}"
                client.create_log_stream(logGroupName=group, logStreamName=stream)
                events = [
                    {"timestamp": now, "message": line}
                    for line in variant.container.take_log()
                    if line
                ]
                if events:
                    client.put_log_events(
                        logGroupName=group, logStreamName=stream, logEvents=events
                    )

    @contextlib.contextmanager
    def lease(self, name: str | None) -> Iterator[Variant | None]:
        """The variant that answers a request; it is not stopped before the end.

        Args:
            name: the variant asked for; None for one drawn by weight.
        """
        with self._traffic:
            if name is None:
                weights = [variant.weight for variant in self.variants]
                if not any(weights):
                    weights = [1.0] * len(self.variants)
                variant = random.choices(self.variants, weights)[0]
            else:
                named = (one for one in self.variants if one.name == name)
                variant = next(named, None)
            if variant is not None:
                variant.running += 1
        try:
            yield variant
        finally:
            if variant is not None:
                with self._traffic:
                    variant.running -= 1
                    self._traffic.notify_all()

    def stop(self) -> None:
        """Stops the containers, also those that are only just starting."""
        with self._traffic:
            self._stopped.set()
            self._traffic.notify_all()
        self.status = "Deleting"
        for variant in [*self.variants, *self._coming]:
            variant.container.stop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(JOIN_TIMEOUT)  # it may be writing the log
