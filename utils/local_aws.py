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
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from utils.course import ROOT, CourseError, RunConfig

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
LOG_LINES = 200
JOIN_TIMEOUT = 5  # seconds
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
    """

    session: boto3.Session = field(repr=False)
    region: str
    role: str
    bucket: str


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
    return Aws(session, session.region_name, role, bucket)


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
    - Its endpoints are in service at once, and answer with a fixed text.
    """
    from moto.sagemaker import models
    from moto.sagemaker.responses import SageMakerResponse
    from moto.sagemakerruntime.responses import SageMakerRuntimeResponse

    if SageMakerRuntimeResponse.invoke_endpoint is _invoke_endpoint:
        return
    SageMakerRuntimeResponse.invoke_endpoint = _invoke_endpoint
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
    config = backend.describe_endpoint_config(given["endpoint_config_name"])
    variants = [
        Variant.of(variant, backend.describe_model(variant["ModelName"]))
        for variant in config["ProductionVariants"]
    ]
    record = create(backend, endpoint_name=endpoint_name, **given)
    record.endpoint_status = "Creating"
    endpoint = LocalEndpoint(endpoint_name, variants)
    OfflineAws.running().endpoints[endpoint_name] = endpoint
    endpoint.start()
    return record


def _with_worker_status(read: Any, backend: Any, *positional: Any, **named: Any) -> Any:
    for name, endpoint in list(OfflineAws.running().endpoints.items()):
        if record := backend.endpoints.get(name):
            record.endpoint_status = endpoint.status
            record.failure_reason = endpoint.failure_reason
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


def _invoke_endpoint(self: Any) -> tuple[int, dict, bytes | str]:
    """Takes the place of moto's canned answer."""
    name = self.path.split("/")[2]
    body = self.body.encode("utf-8") if isinstance(self.body, str) else self.body
    offline = OfflineAws.current
    endpoint = offline.endpoints.get(name) if offline else None
    if endpoint is None or endpoint.status != "InService":
        return _aws_error(
            400,
            "ValidationError",
            f"Endpoint {name} of account {OFFLINE_ACCOUNT} not found.",
        )
    headers = {key.lower(): value for key, value in self.headers.items()}
    variant = endpoint.choose(headers.get("x-amzn-sagemaker-target-variant"))
    if variant is None:
        return _aws_error(
            400, "ValidationError", "Could not find the requested production variant."
        )
    forwarded = {
        key: headers[key.lower()]
        for key in ("Content-Type", "Accept", "X-Amzn-SageMaker-Custom-Attributes")
        if headers.get(key.lower())
    }
    try:
        status, answer_headers, answer = variant.container.send(body, forwarded)
    except (OSError, http.client.HTTPException) as error:
        return _aws_error(
            503, "ServiceUnavailable", f"The worker is being restarted ({error})."
        )
    if status >= 300:
        return _model_error(name, status, answer)
    kept = {"x-Amzn-Invoked-Production-Variant": variant.name}
    if "content-type" in answer_headers:
        kept["Content-Type"] = answer_headers["content-type"]
    return 200, kept, answer


def _aws_error(status: int, code: str, message: str, **more: Any) -> tuple:
    headers = {
        "status": status,  # where moto looks for it
        "x-amzn-errortype": code,
        "Content-Type": "application/json",
    }
    return status, headers, json.dumps({"Message": message, **more})


def _model_error(name: str, status: int, answer: bytes) -> tuple:
    """What AWS makes of a container's own error."""
    kind = "client" if status < 500 else "server"
    text = answer.decode("utf-8", "replace")
    group = f"/aws/sagemaker/Endpoints/{name}"
    return _aws_error(
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


# --- the offline AWS: data plane -----------------------------------------------------


class Container:
    """A process that serves one artifact as the DJL container would."""

    def __init__(self, model_data: str, environment: dict[str, str]):
        self.model_data = model_data
        self.environment = environment
        self.log: deque[str] = deque(maxlen=LOG_LINES)
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
                env={**os.environ, **self.environment},
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
        timer.start()
        try:
            line = process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            return f"the container was not ready after {timeout:.0f} s"
        status = json.loads(line)
        self.port = status.get("port")
        return status.get("error")

    def _read_log(self, stream: Any) -> None:
        for line in stream:
            self.log.append(line.decode("utf-8", "replace").rstrip())

    def send(
        self, body: bytes, headers: dict, method: str = "POST", path="/invocations"
    ) -> tuple[int, dict[str, str], bytes]:
        """
        Raises:
            OSError, http.client.HTTPException: if the container is not there.
        """
        if self.port is None:
            raise ConnectionRefusedError("not started")
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=INVOKE_TIMEOUT
        )
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            answer = reply.read()
        return (
            reply.status,
            {key.lower(): value for key, value in reply.getheaders()},
            answer,
        )

    @property
    def healthy(self) -> bool:
        try:
            return self.send(b"", {}, "GET", "/ping")[0] == 200
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
    """An endpoint with its containers, from Creating to InService or Failed."""

    def __init__(self, name: str, variants: list[Variant]):
        self.name = name
        self.variants = variants
        self.status = "Creating"
        self.failure_reason: str | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _live(self) -> None:
        """Starts the containers, then replaces whichever stops answering /ping."""
        for variant in self.variants:
            reason = variant.container.start(variant.health_check_timeout)
            if reason is not None:
                self._fail(variant, reason)
                return
        if self._stopped.is_set():
            return
        self._ship_log()
        self.status = "InService"
        while not self._stopped.wait(HEALTH_CHECK_INTERVAL):
            for variant in self.variants:
                if not variant.container.healthy and not self._stopped.is_set():
                    variant.container.stop(for_good=False)
                    variant.container.start(variant.health_check_timeout)

    def _fail(self, variant: Variant, reason: str) -> None:
        if self._stopped.is_set():
            return
        for other in self.variants:
            other.container.stop()
        self._ship_log()
        self.failure_reason = (
            f"The primary container for production variant {variant.name} did not pass "
            f"the ping health check. Please check CloudWatch logs for this endpoint. "
            f"The worker's log says: {reason}"
        )
        self.status = "Failed"

    def _ship_log(self) -> None:
        """Writes the log to CloudWatch, as SageMaker does: a stream per variant."""
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        group = f"/aws/sagemaker/Endpoints/{self.name}"
        now = int(time.time() * 1000)
        # The endpoint serves without its log; the account may be closing.
        with contextlib.suppress(BotoCoreError, ClientError):
            client = boto3.Session(region_name=OFFLINE_REGION).client("logs")
            with contextlib.suppress(client.exceptions.ResourceAlreadyExistsException):
                client.create_log_group(logGroupName=group)
            for variant in self.variants:
                stream = f"{variant.name}/{now}"
                client.create_log_stream(logGroupName=group, logStreamName=stream)
                events = [
                    {"timestamp": now, "message": line}
                    for line in list(variant.container.log)
                    if line
                ]
                if events:
                    client.put_log_events(
                        logGroupName=group, logStreamName=stream, logEvents=events
                    )

    def choose(self, name: str | None) -> Variant | None:
        """The variant asked for, else one drawn by weight."""
        if name is not None:
            return next((v for v in self.variants if v.name == name), None)
        weights = [variant.weight for variant in self.variants]
        if not any(weights):
            weights = [1.0] * len(self.variants)
        return random.choices(self.variants, weights)[0]

    def stop(self) -> None:
        self._stopped.set()
        self.status = "Deleting"
        for variant in self.variants:
            variant.container.stop()
        if self._thread.is_alive():
            self._thread.join(JOIN_TIMEOUT)  # it may be writing the log
