"""Calls that the offline AWS does not play are recognised before they are made.

moto answers some of them with a page of Flask's, some with an empty success, and to a
service that it does not have it fails within. SDKs repeat such answers for up to a
minute. What is not seen here is seen in `utils.offline_aws.gate`, by the answer.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from utils.offline_aws.errors import not_played
from utils.offline_aws.operations import Call
from utils.offline_aws.tables import PLAYED as PLAYED_OF_TABLES
from utils.offline_aws.tables import SERVICE as TABLES

# service → its operations that are played, where moto would answer to others as well
PLAYED = {TABLES: PLAYED_OF_TABLES}
# Of a pipeline moto says that it has Succeeded, and runs nothing.
PIPELINE, NO_PIPELINES = "Pipeline", "ListPipelines"
ELSEWHERE = (
    " by itself: the SDK's LocalPipelineSession runs it (utils.jobs.pipeline_run)"
)
LITERAL = re.compile(r"""["']([\w-]+)["']""")


class Unplayed:
    """The WSGI application that refuses what moto does not play."""

    def __init__(self, application: Callable, moto: Any):
        """Stand before an application.

        Args:
            application: what plays the calls.
            moto: its `DomainDispatcherApplication`, which knows its services.
        """
        self.application = application
        self.moto = moto

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        """Answer a request.

        Raises:
            AwsFault: if nothing here plays it.
        """
        call: Call = environ["offline_aws.call"]
        signed = "HTTP_AUTHORIZATION" in environ
        if signed and not self._has_service(environ):
            raise not_played(str(call))
        if call.name not in PLAYED.get(call.service, {call.name}):
            raise not_played(str(call))
        if call.service == "sagemaker" and PIPELINE in call.name != NO_PIPELINES:
            raise not_played(str(call), ELSEWHERE)
        if call.service == "s3" and call.operation is not None:
            asked = call.operation.http["requestUri"].partition("?")[2]
            keys = {part.partition("=")[0] for part in asked.split("&") if part}
            if not keys <= _words_of_s3():
                raise not_played(str(call))
        return self.application(environ, start_response)

    def _has_service(self, environ: dict) -> bool:
        """Say whether moto has the service at all."""
        host = self.moto.infer_service_region_host(environ, environ["PATH_INFO"])
        return host is not None and (host.count(".") == 0 or _is_known(host))


@functools.cache
def _is_known(host: str) -> bool:
    from moto.backend_index import backend_url_patterns

    return any(pattern.match(f"http://{host}") for _, pattern in backend_url_patterns)


@functools.cache
def _words_of_s3() -> frozenset[str]:
    """Return all words that moto's S3 looks for.

    It answers a query that it does not know as if it were not there, so that
    PutBucketAnalyticsConfiguration would be CreateBucket.
    """
    import moto.s3.responses

    return frozenset(LITERAL.findall(inspect.getsource(moto.s3.responses)))
