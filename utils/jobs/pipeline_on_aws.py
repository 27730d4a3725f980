"""Run the retraining pipeline on AWS, where the service goes through its steps.

The definition is created or updated, an execution started and waited for. Then the same
`Run` is returned as `pipeline_run.run_here` gives, so that what follows is the same.
The pipeline's last step has registered the version by then.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from utils.jobs.pipeline import EVALUATES, TRAINS, build_pipeline, parameter_values
from utils.jobs.pipeline_plan import Plan
from utils.jobs.pipeline_run import Run, RunError, read_run

if TYPE_CHECKING:
    from utils.deployment.aws import Aws

FIRST_POLL, LONGEST_POLL = 5.0, 30.0  # seconds between looks at an execution
GOING_ON = ("Executing", "Stopping")


def run_on_aws(
    aws: Aws, plan: Plan, values: Mapping[str, Any], first_poll: float = FIRST_POLL
) -> Run:
    """Run the pipeline to its decision.

    Args:
        aws: the account.
        plan: of the pipeline.
        values: of its parameters; see `utils.jobs.pipeline_run.start_values`.
        first_poll: seconds until the first look; the pause grows.

    Raises:
        RunError: if a job failed, so that nothing was decided.
    """
    given = parameter_values(plan, values)
    pipeline = build_pipeline(aws, plan)
    pipeline.upsert(role_arn=aws.role, description="Retraining")
    client = aws.session.client("sagemaker")
    started = client.start_pipeline_execution(
        PipelineName=plan.name,
        PipelineParameters=[
            {"Name": name, "Value": str(value)} for name, value in given.items()
        ],
    )
    arn, pause = started["PipelineExecutionArn"], first_poll
    while True:
        found = client.describe_pipeline_execution(PipelineExecutionArn=arn)
        if found["PipelineExecutionStatus"] not in GOING_ON:
            break
        time.sleep(pause)
        pause = min(pause * 1.2, LONGEST_POLL)
    return _read(aws, client, found)


def _read(aws: Aws, client: Any, found: Mapping[str, Any]) -> Run:
    """Return what an execution came to."""
    arn = found["PipelineExecutionArn"]
    pages = client.get_paginator("list_pipeline_execution_steps").paginate(
        PipelineExecutionArn=arn, SortOrder="Ascending"
    )
    steps = {
        one["StepName"]: one for page in pages for one in page["PipelineExecutionSteps"]
    }
    evaluated = steps.get(EVALUATES, {})
    if evaluated.get("StepStatus") != "Succeeded":
        why = "; ".join(
            f"Step {name}: {one['FailureReason']}"
            for name, one in steps.items()
            if one.get("FailureReason")
        )
        raise RunError(f"Nothing was decided. {why or found.get('FailureReason', '')}")
    job = evaluated["Metadata"]["ProcessingJob"]["Arn"].rpartition("/")[2]
    described = client.describe_processing_job(ProcessingJobName=job)
    outputs = {
        one["OutputName"]: one["S3Output"]["S3Uri"]
        for one in described["ProcessingOutputConfig"]["Outputs"]
    }
    return read_run(
        aws,
        execution=arn.rpartition("/")[2],
        status=found["PipelineExecutionStatus"],
        reason=found.get("FailureReason", ""),
        job=steps[TRAINS]["Metadata"]["TrainingJob"]["Arn"],
        places=outputs,
        steps=[
            {
                "step": name,
                "kind": next(iter(one.get("Metadata", {})), ""),
                "status": one["StepStatus"],
                "seconds": (one["EndTime"] - one["StartTime"]).total_seconds(),
            }
            for name, one in steps.items()
            if one.get("EndTime")
        ],
    )
