"""An offline AWS on this machine, which costs nothing and needs no account.

It has two halves. Control plane: moto's server in a thread of this process, on
127.0.0.1, patched where the course needs what moto lacks. Data plane: for each endpoint
a process that fetches the artifact from that S3 and serves it as DJL Serving would
(`utils.djl_python`), and for each training job one that trains. All end with this
process, however it ends. Only who holds the run's own key gets in
(`utils.offline_aws.gate`).
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import threading

from utils.offline_aws.checks import Checks
from utils.offline_aws.endpoints import ENDPOINTS, clear_dead
from utils.offline_aws.gate import Gate
from utils.offline_aws.invocations import DataPlane
from utils.offline_aws.metrics import METRICS
from utils.offline_aws.moto_patches import moto_application, patch_moto
from utils.offline_aws.names import (
    OFFLINE_BUCKET,
    OFFLINE_REGION,
    OFFLINE_ROLE,
    OFFLINE_STOP_ROLE,
    forget_sdk_clients,
)
from utils.offline_aws.processing_jobs import stop_all as stop_processing
from utils.offline_aws.schedules import PRINCIPAL, Schedules
from utils.offline_aws.signatures import Key
from utils.offline_aws.training_jobs import stop_all
from utils.offline_aws.training_supervisor import PREFIX
from utils.offline_aws.tuning_patches import leave_tuning_jobs
from utils.offline_aws.unplayed import Unplayed

# What could lead a client elsewhere, or to other credentials, is taken away.
MISLEADING = re.compile(
    r"AWS_(ENDPOINT_URL.*|PROFILE|DEFAULT_PROFILE|SESSION_TOKEN|SECURITY_TOKEN|ROLE_.*"
    r"|WEB_IDENTITY_.*|CONTAINER_.*|USE_.*_ENDPOINT|CA_BUNDLE)"
)


class OfflineAws:
    """The offline AWS of this process. There is at most one."""

    current: OfflineAws | None = None
    lock = threading.RLock()

    @classmethod
    def running(cls) -> OfflineAws:
        """Return the one that runs, started if need be."""
        with cls.lock:
            if cls.current is None:
                cls.current = cls()
            return cls.current

    def __init__(self):
        import boto3
        from moto.moto_api._internal.models import moto_api_backend

        from utils.offline_aws.http_server import Server

        patch_moto()
        leave_tuning_jobs()
        moto_api_backend.reset()
        for name in ("werkzeug", "sagemaker.config", "botocore.credentials"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.endpoints = ENDPOINTS
        self.endpoints.clear()
        METRICS.clear()
        stop_all()
        stop_processing()
        clear_dead()  # what endpoints had unpacked when a run before this was killed
        clear_dead(prefix=PREFIX)  # and the folders of its training jobs
        self.key = Key.new()
        self.server = Server()
        self.url = f"http://{self.server.address}"
        moto = moto_application()
        data_plane = DataPlane(Unplayed(moto, moto), self.endpoints)
        application = Checks(data_plane)
        self.server.start(Gate(application, self.server.address, self.key))
        self._environment = dict(os.environ)
        self._point_clients_here()
        atexit.register(self.close)
        # Its own credentials, whatever the environment holds later.
        self.session = boto3.Session(
            aws_access_key_id=self.key.access,
            aws_secret_access_key=self.key.secret,
            region_name=OFFLINE_REGION,
        )
        self.region = OFFLINE_REGION
        self.bucket, self.role = OFFLINE_BUCKET, self._create_roles_and_bucket()
        self.schedules = Schedules()
        self.schedules.start()

    def _point_clients_here(self) -> None:
        """Make every AWS client of this process and its children talk to `url`."""
        import boto3

        for name in [name for name in os.environ if MISLEADING.fullmatch(name)]:
            del os.environ[name]
        no_proxy = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
        os.environ |= {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false",
            "AWS_ACCESS_KEY_ID": self.key.access,
            "AWS_SECRET_ACCESS_KEY": self.key.secret,
            "AWS_DEFAULT_REGION": OFFLINE_REGION,
            "AWS_REGION": OFFLINE_REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            # No prefix before 127.0.0.1, such as "streaming-" for live logs.
            "AWS_DISABLE_HOST_PREFIX_INJECTION": "true",
            # Every role may do everything here: the SDK need not ask IAM before a job.
            "SAGEMAKER_VALIDATE_ROLE": "false",
            "NO_PROXY": ",".join(filter(None, [no_proxy, "127.0.0.1"])),
            "no_proxy": ",".join(filter(None, [no_proxy, "127.0.0.1"])),
        }
        boto3.DEFAULT_SESSION = None
        forget_sdk_clients()

    def _create_roles_and_bucket(self) -> str:
        """Create what a real account has from the start.

        Returns:
            the ARN of the role that SageMaker assumes.
        """
        self.session.client("s3").create_bucket(Bucket=OFFLINE_BUCKET)
        self._create_role(OFFLINE_STOP_ROLE, PRINCIPAL)
        return self._create_role(OFFLINE_ROLE, "sagemaker.amazonaws.com")

    def _create_role(self, name: str, service: str) -> str:
        """Create a role that a service may assume; return its ARN."""
        trust = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"Service": service},
                    "Action": "sts:AssumeRole",
                }
            ],
        }
        role = self.session.client("iam").create_role(
            RoleName=name, AssumeRolePolicyDocument=json.dumps(trust)
        )
        return role["Role"]["Arn"]

    def close(self) -> None:
        """Stop every worker and the server, and put the environment back."""
        with self.lock:
            if OfflineAws.current is not self:
                return
            OfflineAws.current = None
            self.schedules.stop()
            for endpoint in list(self.endpoints.values()):
                endpoint.stop()
            self.server.stop()  # no request may start a job that nobody ends
            leave_tuning_jobs()
            stop_all()
            stop_processing()
            os.environ.clear()
            os.environ |= self._environment
            forget_sdk_clients()
            atexit.unregister(self.close)
