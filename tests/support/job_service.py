"""SageMaker's jobs, tuning jobs and pipelines as far as their life goes, in memory.

moto's jobs have ended as soon as they are created, and cannot be stopped or deleted.
Here a job runs until it is stopped, takes a few looks to stop, and AWS's conditions for
its deletion hold. Requests are held to botocore's model, as for any client: this stands
behind the client, in place of the answer from the network.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import botocore.session

from utils.deployment.aws import violations
from utils.deployment.tagged import JOBS

OPERATIONS = {operation: (kind, key) for kind, (operation, key) in JOBS.items()}
ARNS = {
    "TrainingJob": "training-job",
    "HyperParameterTuningJob": "hyper-parameter-tuning-job",
    "ProcessingJob": "processing-job",
    "TransformJob": "transform-job",
    "Pipeline": "pipeline",
}
WORDS = {"TrainingJob": "Training", "ProcessingJob": "Processing"}
WORDS["TransformJob"] = "Transform"
PAGE = 2  # entries of a listing, so that every listing has pages


class Refusal(Exception):
    """An answer that is an error; its code and message."""


class JobService:
    """Answers a session's calls about jobs; all others go their way.

    Attributes:
        things: by operation and name: descriptions.
        tags: by ARN.
        executions: by pipeline: summaries of its executions.
        steps: by an execution's ARN: what its steps have made.
        children: by a tuning job's name: its training jobs' names.
        looks: how often a job is still seen stopping.
        calls: names of the operations, in their order.
    """

    def __init__(self, session: Any):
        self.things: dict[tuple[str, str], dict[str, Any]] = {}
        self.tags: dict[str, list[dict[str, str]]] = {}
        self.executions: dict[str, list[dict[str, Any]]] = {}
        self.steps: dict[str, list[dict[str, Any]]] = {}
        self.children: dict[str, list[str]] = {}
        self.looks = 2
        self.calls: list[str] = []
        self.refused: dict[str, tuple[str, str]] = {}
        self._left: dict[str, int] = {}
        self._session = session
        self._model = botocore.session.get_session().get_service_model("sagemaker")
        session.events.register("before-call.sagemaker", self._answer)

    def close(self) -> None:
        """Let the session's calls go their way again."""
        self._session.events.unregister("before-call.sagemaker", self._answer)

    # --- as a test sees it ---------------------------------------------------------

    def put(self, operation: str, name: str, **more: Any) -> dict[str, Any]:
        """Have something in the account, running, that no watched session created."""
        now = datetime.datetime.now(datetime.UTC)
        thing = {OPERATIONS[operation][1]: name, "CreationTime": now}
        thing[f"{operation}Arn"] = arn(operation, name)
        thing["LastModifiedTime"] = now
        if operation == "Pipeline":
            thing["PipelineStatus"] = "Active"
        else:
            thing[f"{operation}Status"] = "InProgress"
        if operation in WORDS:
            thing[f"{WORDS[operation]}StartTime"] = now
        self.things[operation, name] = {**thing, **more}
        self.tags.setdefault(thing[f"{operation}Arn"], [])
        return self.things[operation, name]

    def end(self, operation: str, name: str, status: str = "Completed", **more) -> None:
        """Let a job end."""
        thing = self.things[operation, name]
        thing[f"{operation}Status"] = status
        if operation in WORDS:
            now = datetime.datetime.now(datetime.UTC)
            thing[f"{WORDS[operation]}EndTime"] = now
        keep = thing.get("ResourceConfig", {}).get("KeepAlivePeriodInSeconds")
        if keep:
            thing["WarmPoolStatus"] = {"Status": "Available"}
        thing.update(more)

    def start(self, pipeline: str, **more: Any) -> dict[str, Any]:
        """Have a pipeline run."""
        runs = self.executions.setdefault(pipeline, [])
        name = f"{arn('Pipeline', pipeline)}/execution/{len(runs)}"
        execution = {
            "PipelineExecutionArn": name,
            "PipelineExecutionStatus": "Executing",
            **more,
        }
        runs.append(execution)
        return execution

    def running(self) -> list[str]:
        """Return the names of what runs."""
        return [
            name
            for (operation, name), thing in self.things.items()
            if thing.get(f"{operation}Status") in ("InProgress", "Stopping")
        ] + [
            one["PipelineExecutionArn"]
            for runs in self.executions.values()
            for one in runs
            if one["PipelineExecutionStatus"] in ("Executing", "Stopping")
        ]

    # --- as a client sees it -------------------------------------------------------

    def _answer(self, model: Any, params: dict, **_: Any) -> Any:
        play = self._play_for(model.name)
        if play is None:
            return None
        request = json.loads(params["body"] or b"{}")
        try:
            self.calls.append(model.name)
            complaints = list(violations(model.input_shape, request))
            assert not complaints, complaints
            if model.name in self.refused:
                raise Refusal(*self.refused[model.name])
            answer = play(request)
        except Refusal as refusal:
            if refusal.args[0] == "no answer":
                raise ConnectionError("the answer was lost") from refusal
            if refusal.args[0] == "elsewhere":
                return None
            code, message = refusal.args
            error = {"Error": {"Code": code, "Message": message}}
            return SimpleNamespace(status_code=400, headers={}), error
        if model.output_shape is not None and model.name.startswith("List"):
            self._check(answer, model)
        answer["ResponseMetadata"] = {"HTTPStatusCode": 200}
        return SimpleNamespace(status_code=200, headers={}), answer

    def _check(self, answer: dict[str, Any], model: Any) -> None:
        unknown = set(answer) - set(model.output_shape.members)
        assert not unknown, f"{model.name} has no {unknown}"

    def _play_for(self, name: str) -> Callable[[dict], dict] | None:
        special = {
            "ListTags": self._list_tags,
            "AddTags": self._add_tags,
            "UpdateTrainingJob": self._end_pool,
            "ListTrainingJobsForHyperParameterTuningJob": self._list_children,
            "StartPipelineExecution": self._start,
            "StopPipelineExecution": self._stop_execution,
            "DescribePipelineExecution": self._describe_execution,
            "ListPipelineExecutions": self._list_executions,
            "ListPipelineExecutionSteps": self._list_steps,
        }
        if name in special:
            return special[name]
        for verb, play in (
            ("Create", self._create),
            ("Describe", self._describe),
            ("Stop", self._stop),
            ("Delete", self._delete),
        ):
            if (operation := name.removeprefix(verb)) in OPERATIONS and verb in name:
                return lambda request: play(operation, request)
        operation = name.removeprefix("List").removesuffix("s")
        if name.startswith("List") and operation in OPERATIONS:
            return lambda request: self._list(operation, request)
        return None

    def _create(self, operation: str, request: dict) -> dict:
        name = request[OPERATIONS[operation][1]]
        if (operation, name) in self.things:
            raise Refusal("ResourceInUse", f"{operation} names must be unique")
        given = {key: value for key, value in request.items() if key != "Tags"}
        thing = self.put(operation, name, **given)
        self.tags[thing[f"{operation}Arn"]] = request.get("Tags", [])
        return {f"{operation}Arn": thing[f"{operation}Arn"]}

    def _thing(self, operation: str, request: dict) -> dict:
        name = request[OPERATIONS[operation][1]]
        if (operation, name) not in self.things:
            if operation == "Pipeline":
                raise Refusal("ResourceNotFound", f"Pipeline {name} does not exist")
            raise Refusal("ValidationException", "Requested resource not found.")
        return self.things[operation, name]

    def _describe(self, operation: str, request: dict) -> dict:
        thing = self._thing(operation, request)
        key = thing[f"{operation}Arn"]
        if thing.get(f"{operation}Status") == "Stopping":
            self._left[key] -= 1
            if self._left[key] < 0:
                self.end(operation, request[OPERATIONS[operation][1]], "Stopped")
        return dict(thing)

    def _stop(self, operation: str, request: dict) -> dict:
        thing = self._thing(operation, request)
        status = thing[f"{operation}Status"]
        if status != "InProgress":
            message = f"The request was rejected because the job is in status {status}."
            raise Refusal("ValidationException", message)
        thing[f"{operation}Status"] = "Stopping"
        self._left[thing[f"{operation}Arn"]] = self.looks
        for child in self.children.get(request[OPERATIONS[operation][1]], []):
            if self.things["TrainingJob", child]["TrainingJobStatus"] == "InProgress":
                self._stop("TrainingJob", {"TrainingJobName": child})
        return {}

    def _delete(self, operation: str, request: dict) -> dict:
        name = request[OPERATIONS[operation][1]]
        thing = self._thing(operation, request)
        if operation == "Pipeline":
            runs = self.executions.get(name, [])
            if any(one["PipelineExecutionStatus"] == "Executing" for one in runs):
                raise Refusal("ConflictException", "the pipeline has running instances")
            self.executions.pop(name, None)
        elif thing[f"{operation}Status"] in ("InProgress", "Stopping"):
            raise Refusal("ResourceInUse", "the job is not in a terminal state")
        elif thing.get("WarmPoolStatus", {}).get("Status") == "Available":
            raise Refusal("ResourceInUse", "the job retains a warm pool")
        del self.things[operation, name]
        return {}

    def _list(self, operation: str, request: dict) -> dict:
        wanted = request.get("NameContains", request.get("PipelineNamePrefix", ""))
        found = []
        for (kind, name), thing in self.things.items():
            pool = thing.get("WarmPoolStatus", {}).get("Status")
            if (
                kind == operation
                and wanted in name
                and request.get("StatusEquals") in (None, thing.get(f"{kind}Status"))
                and request.get("WarmPoolStatusEquals") in (None, pool)
            ):
                found.append(thing)
        return self._page(f"{operation}Summaries", found, request)

    def _page(self, key: str, found: list[dict], request: dict) -> dict:
        start = int(request.get("NextToken", 0))
        answer: dict[str, Any] = {key: found[start : start + PAGE]}
        if start + PAGE < len(found):
            answer["NextToken"] = str(start + PAGE)
        return answer

    def _list_tags(self, request: dict) -> dict:
        if request["ResourceArn"] not in self.tags:
            raise Refusal("elsewhere")
        return {"Tags": self.tags[request["ResourceArn"]]}

    def _add_tags(self, request: dict) -> dict:
        if request["ResourceArn"] not in self.tags:
            raise Refusal("elsewhere")
        self.tags[request["ResourceArn"]] += request["Tags"]
        return {"Tags": self.tags[request["ResourceArn"]]}

    def _end_pool(self, request: dict) -> dict:
        thing = self._thing("TrainingJob", request)
        assert request["ResourceConfig"] == {"KeepAlivePeriodInSeconds": 0}
        kept = time.time() - thing["TrainingEndTime"].timestamp()
        seconds = thing["WarmPoolStatus"].get("ResourceRetainedBillableTimeInSeconds")
        thing["WarmPoolStatus"] = {
            "Status": "Terminated",
            "ResourceRetainedBillableTimeInSeconds": seconds or round(kept),
        }
        return {"TrainingJobArn": thing["TrainingJobArn"]}

    def _list_children(self, request: dict) -> dict:
        self._thing("HyperParameterTuningJob", request)
        names = self.children.get(request["HyperParameterTuningJobName"], [])
        found = [self.things["TrainingJob", name] for name in names]
        return self._page("TrainingJobSummaries", found, request)

    def _start(self, request: dict) -> dict:
        self._thing("Pipeline", request)
        more = {
            key: request[key]
            for key in ("PipelineExecutionDescription", "PipelineExecutionDisplayName")
            if key in request
        }
        execution = self.start(request["PipelineName"], **more)
        return {"PipelineExecutionArn": execution["PipelineExecutionArn"]}

    def _describe_execution(self, request: dict) -> dict:
        for runs in self.executions.values():
            for one in runs:
                if one["PipelineExecutionArn"] == request["PipelineExecutionArn"]:
                    return dict(one)
        raise Refusal("ResourceNotFound", "Pipeline execution does not exist")

    def _stop_execution(self, request: dict) -> dict:
        for runs in self.executions.values():
            for one in runs:
                if one["PipelineExecutionArn"] == request["PipelineExecutionArn"]:
                    one["PipelineExecutionStatus"] = "Stopping"
        return {"PipelineExecutionArn": request["PipelineExecutionArn"]}

    def _list_executions(self, request: dict) -> dict:
        self._thing("Pipeline", request)
        runs = self.executions.get(request["PipelineName"], [])
        answer = self._page(
            "PipelineExecutionSummaries", [dict(r) for r in runs], request
        )
        for one in runs:
            if one["PipelineExecutionStatus"] == "Stopping":
                one["PipelineExecutionStatus"] = "Stopped"
        return answer

    def _list_steps(self, request: dict) -> dict:
        found = self.steps.get(request["PipelineExecutionArn"], [])
        return self._page("PipelineExecutionSteps", found, request)


def arn(operation: str, name: str) -> str:
    """Return the ARN of a job or a pipeline."""
    return f"arn:aws:sagemaker:us-east-1:123456789012:{ARNS[operation]}/{name}"
