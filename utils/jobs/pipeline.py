"""Retraining as a SageMaker Pipeline: train, evaluate, register or refuse.

One definition serves both places. On AWS its last steps register the version, approved
or rejected, with the reason. Offline the SDK's own executor runs its training,
processing, condition and fail steps; it knows no step that registers, so that
`pipeline_run` does this afterwards, by the same notes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from utils.jobs.evaluate import ARCHIVE, RESULT
from utils.jobs.lineage import ADAPTER, EXECUTION, JOB, TRAIN
from utils.jobs.pipeline_plan import (
    DATA_DIGEST,
    LIVE,
    RULES,
    SOURCE,
    TEST_DIGEST,
    PipelineError,
    Plan,
    upload_source,
)
from utils.jobs.source import hyperparameters
from utils.web.versions import (
    APPROVED,
    DECISION,
    HYPERPARAMETER,
    JSON,
    METRIC,
    ORIGIN,
    REJECTED,
)

if TYPE_CHECKING:
    from sagemaker.core.workflow.parameters import Parameter
    from sagemaker.mlops.workflow import ModelStep, ProcessingStep, TrainingStep
    from sagemaker.mlops.workflow.pipeline import Pipeline

    from utils.deployment.aws import Aws

# Names of steps, by which a run's results are found.
TRAINS, EVALUATES, DECIDES = "Train", "Evaluate", "IsBetter"
REGISTERS, REGISTERS_REFUSED, REFUSES = "Register", "RegisterRefused", "Refuse"
BY = "retraining pipeline"  # whose decision it is
PLACE = "/opt/ml/processing"  # of a processing job: developer guide
MESSAGE = "/opt/ml/output/message"  # what it says there becomes its ExitMessage
# The evaluation imports the course's own modules, which no image has. An entrypoint's
# words have 256 characters at most and no line end (botocore's model), so that it does
# no more than unpack; the script in the archive does the rest.
COMMAND = (
    f"cd {PLACE} && mkdir source && tar -xzf input/source/{SOURCE} -C source && "
    'cd source && exec bash evaluate.sh "$@"'
)


def build_pipeline(aws: Aws, plan: Plan, registers: bool = True) -> Pipeline:
    """Return the pipeline; nothing is created but what its jobs read.

    Args:
        aws: the account; sources are uploaded to its bucket.
        plan: of the pipeline.
        registers: with the steps that register; the local executor cannot run them.

    Raises:
        PipelineError: if the source folder lacks the entry script, or what says its
            needs.
    """
    from sagemaker.core.workflow.conditions import ConditionGreaterThanOrEqualTo
    from sagemaker.core.workflow.pipeline_context import PipelineSession
    from sagemaker.mlops.workflow import ConditionStep, FailStep
    from sagemaker.mlops.workflow.pipeline import Pipeline

    for needed in filter(None, (plan.entry_script, plan.needed)):
        if not (plan.source / needed).is_file():
            raise PipelineError(
                f"{plan.source.name} has no {needed}. Give the folder of the training "
                "job's sources, and the file's name in it."
            )
    session = PipelineSession(boto_session=aws.session, default_bucket=aws.bucket)
    given = _parameters(plan)
    trains = _training_step(aws, plan, given, session)
    evaluates = _evaluation_step(aws, plan, given, session, trains)
    refuses = FailStep(REFUSES, error_message=_said("why"))
    if_better, otherwise = [], [refuses]
    if registers:
        steps = (trains, evaluates)
        accepts, rejects = (
            _register_step(aws, name, status, plan, given, session, *steps)
            for name, status in (
                (REGISTERS, APPROVED),
                (REGISTERS_REFUSED, REJECTED),
            )
        )
        if_better = [accepts]
        refuses.add_depends_on([rejects])
        otherwise = [rejects, refuses]
    decides = ConditionStep(
        DECIDES,
        conditions=[ConditionGreaterThanOrEqualTo(_said("promote"), 1)],
        if_steps=if_better,
        else_steps=otherwise,
    )
    return Pipeline(
        plan.name,
        parameters=list(given.values()),
        steps=[trains, evaluates, decides],
        sagemaker_session=session,
        pipeline_experiment_config=None,
    )


def _parameters(plan: Plan) -> dict[str, Parameter]:
    """Return the pipeline's parameters by their names.

    True and False are texts, for a Boolean parameter would reach the job in whatever
    way its place writes it: "True" here, and a script may take any text for true.
    """
    from sagemaker.core.workflow.parameters import (
        ParameterFloat,
        ParameterInteger,
        ParameterString,
    )

    found: dict[str, Parameter] = {
        name: ParameterString(name) for name in (DATA_DIGEST, TEST_DIGEST, LIVE)
    }
    for name, value in plan.hyperparameters.items():
        if isinstance(value, bool):
            text = str(value).lower()
            found[name] = ParameterString(name, text, enum_values=["true", "false"])
        elif isinstance(value, int):
            found[name] = ParameterInteger(name=name, default_value=value)
        elif isinstance(value, float):
            found[name] = ParameterFloat(name=name, default_value=value)
        else:
            found[name] = ParameterString(name, hyperparameters(text=value)["text"])
    for name, attribute in RULES.items():
        value = float(getattr(plan, attribute))
        found[name] = ParameterFloat(name=name, default_value=value)
    return found


def parameter_values(plan: Plan, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as the pipeline's parameters take them.

    A parameter takes its own type alone: the executor refuses 1 where 1.0 is meant.

    Args:
        plan: of the pipeline.
        values: by name: texts, numbers, True or False.

    Raises:
        PipelineError: if one is of another kind than the plan's default.
    """
    kinds = {name: type(value) for name, value in plan.hyperparameters.items()}
    kinds |= dict.fromkeys(RULES, float)
    found = {}
    for name, value in values.items():
        kind = kinds.get(name)
        if kind is float and type(value) is int:
            value = float(value)
        if kind is not None and type(value) is not kind:
            raise PipelineError(
                f"The parameter {name} is {value!r}, and the plan's default is a "
                f"{kind.__name__}: give one, too."
            )
        if kind is bool:
            value = str(value).lower()
        elif kind is str:
            value = hyperparameters(text=value)["text"]
        found[name] = value
    return found


def _training_step(
    aws: Aws, plan: Plan, given: Mapping[str, Parameter], session: Any
) -> TrainingStep:
    from sagemaker.mlops.workflow import TrainingStep
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import (
        Compute,
        InputData,
        OutputDataConfig,
        SourceCode,
        StoppingCondition,
    )

    trainer = ModelTrainer(
        sagemaker_session=session,
        role=aws.role,
        training_image=plan.training_image,
        base_job_name=plan.name,
        source_code=SourceCode(
            source_dir=str(plan.source),
            entry_script=plan.entry_script,
            requirements=plan.needed,
        ),
        compute=Compute(instance_type=plan.instance_type, instance_count=1),
        stopping_condition=StoppingCondition(max_runtime_in_seconds=plan.max_runtime),
        output_data_config=OutputDataConfig(s3_output_path=plan.place(aws, "jobs")),
        # A number would be refused: the values of a job are texts.
        hyperparameters={
            name: given[name].to_string() for name in plan.hyperparameters
        },
    )
    channels = {TRAIN: _from_digest(aws, plan, "data", given[DATA_DIGEST])}
    arguments = trainer.train(
        input_data_config=[
            InputData(channel_name=name, data_source=source)
            for name, source in {**channels, **plan.channels}.items()
        ]
    )
    return TrainingStep(TRAINS, step_args=arguments)


def _from_digest(aws: Aws, plan: Plan, kind: str, found: Parameter) -> Any:
    from sagemaker.core.workflow.functions import Join

    return Join(on="/", values=[plan.place(aws, kind), found, f"{kind}.jsonl"])


def _evaluation_step(
    aws: Aws,
    plan: Plan,
    given: Mapping[str, Parameter],
    session: Any,
    trains: TrainingStep,
) -> ProcessingStep:
    from sagemaker.core.processing import Processor
    from sagemaker.core.shapes import (
        ProcessingInput,
        ProcessingOutput,
        ProcessingS3Input,
        ProcessingS3Output,
    )
    from sagemaker.core.workflow.execution_variables import ExecutionVariables
    from sagemaker.core.workflow.functions import Join
    from sagemaker.mlops.workflow import ProcessingStep

    processor = Processor(
        sagemaker_session=session,
        role=aws.role,
        image_uri=plan.training_image,
        instance_count=1,
        instance_type=plan.instance_type,
        entrypoint=["/bin/bash", "-c", COMMAND, "evaluate"],
        max_runtime_in_seconds=plan.max_runtime,
    )
    inputs = {
        "candidate": trains.properties.ModelArtifacts.S3ModelArtifacts,
        "live": given[LIVE],
        "test": _from_digest(aws, plan, "test", given[TEST_DIGEST]),
        "source": upload_source(aws, plan),
    }
    run = ExecutionVariables.PIPELINE_EXECUTION_ID
    rules = {
        "--min-gain": given["MinGain"].to_string(),
        "--alpha": given["Alpha"].to_string(),
        "--floor": given["Floor"].to_string(),
        "--max-new-tokens": str(plan.max_new_tokens),
        **{
            f"--{name}": f"{PLACE}/input/{name}"
            for name in ("candidate", "live", "test")
        },
        **{f"--{name}": f"{PLACE}/{name}" for name in ("evaluation", "archive")},
        "--message": MESSAGE,
    }
    arguments = processor.run(
        inputs=[
            ProcessingInput(
                input_name=name,
                s3_input=ProcessingS3Input(
                    s3_uri=source,
                    local_path=f"{PLACE}/input/{name}",
                    s3_data_type="S3Prefix",
                    s3_input_mode="File",
                ),
            )
            for name, source in inputs.items()
        ],
        outputs=[
            ProcessingOutput(
                output_name=name,
                s3_output=ProcessingS3Output(
                    s3_uri=Join(on="/", values=[plan.place(aws, "runs"), run, name]),
                    local_path=f"{PLACE}/{name}",
                    s3_upload_mode="EndOfJob",
                ),
            )
            for name in ("evaluation", "archive")
        ],
        arguments=[word for pair in rules.items() for word in pair],
    )
    return ProcessingStep(
        EVALUATES, step_args=arguments, property_files=[_property_file()]
    )


def _property_file() -> Any:
    from sagemaker.core.workflow.properties import PropertyFile

    return PropertyFile(name="Evaluation", output_name="evaluation", path=RESULT)


def _said(path: str) -> Any:
    """Return a value of evaluation.json, as the pipeline reads it."""
    from sagemaker.core.workflow.functions import JsonGet

    return JsonGet(step_name=EVALUATES, property_file=_property_file(), json_path=path)


def _register_step(
    aws: Aws,
    name: str,
    status: str,
    plan: Plan,
    given: Mapping[str, Parameter],
    session: Any,
    trains: TrainingStep,
    evaluates: ProcessingStep,
) -> ModelStep:
    """Return the step that registers a version as `Versions.register` would."""
    from sagemaker.core.workflow.execution_variables import ExecutionVariables
    from sagemaker.core.workflow.functions import Join
    from sagemaker.mlops.workflow import ModelStep
    from sagemaker.serve.model_builder import ModelBuilder

    outputs = evaluates.properties.ProcessingOutputConfig.Outputs
    decided = [status, ExecutionVariables.CURRENT_DATETIME, BY]
    notes = {
        "archive": _said("digests.archive"),
        "data": given[DATA_DIGEST],
        "base": plan.base,
        f"{ORIGIN}{JOB}": trains.properties.TrainingJobArn,
        f"{ORIGIN}{ADAPTER}": _said("digests.adapter"),
        f"{ORIGIN}live": _said("digests.live"),
        f"{ORIGIN}{EXECUTION}": ExecutionVariables.PIPELINE_EXECUTION_ID,
        f"{DECISION}0001": Join(on=" ", values=decided),
        **{f"{HYPERPARAMETER}{one}": given[one].to_string() for one in plan.noted},
        **{
            f"{METRIC}{one}": _said(f"texts.{one}")
            for one in ("right", "live_right", "p")
        },
    }
    builder = ModelBuilder(
        sagemaker_session=session,
        role_arn=aws.role,
        image_uri=plan.serving_image,
        s3_model_data_url=Join(
            on="/", values=[outputs["archive"].S3Output.S3Uri, ARCHIVE]
        ),
    )
    arguments = builder.register(
        model_package_group_name=plan.group,
        content_types=[JSON],
        response_types=[JSON],
        inference_instances=list(plan.serving_types),
        approval_status=status,
        description=_said("why"),
        customer_metadata_properties=notes,
    )
    # The SDK's own, for handlers of its own; the archive brings its handler along.
    (container,) = arguments.create_model_package_request["InferenceSpecification"][
        "Containers"
    ]
    container.pop("Environment", None)
    return ModelStep(name, step_args=arguments)
