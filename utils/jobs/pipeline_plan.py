"""What a retraining pipeline is given: its plan, and the files that it reads.

Data, questions and sources lie at addresses that hold their digests. So a parameter is
a digest, the address follows from it, and the two cannot go out of step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from utils.course import ROOT, CourseError
from utils.temporary import temporary_folder

if TYPE_CHECKING:
    from utils.deployment.aws import Aws

# Names of parameters besides the hyperparameters.
DATA_DIGEST, TEST_DIGEST, LIVE = "DataDigest", "TestDigest", "LiveArchive"
RULES = {"MinGain": "min_gain", "Alpha": "alpha", "Floor": "floor"}
SOURCE, REQUIREMENTS = "source.tar.gz", "requirements.txt"
PREFIX = "course-source-"  # of the folder in which the sources are packed
NOT_PACKED = ("exercises", "lab_model", "__pycache__", "page")
NEEDED_DATA = ("sagemaker_facts.csv", "sagemaker_wordings.csv")
SCRIPT = """set -e
if [ -f requirements.txt ]; then python3 -m pip install -q -r requirements.txt; fi
exec python3 -m utils.jobs.evaluate "$@"
"""


class PipelineError(CourseError):
    """A plan that makes no pipeline; the message says what to change."""


@dataclass(frozen=True)
class Plan:
    """All that stays the same from one retraining to the next.

    First used in lesson 08, section 7.

    Attributes:
        name: of the pipeline, and the beginning of all addresses.
        group: of the registry.
        base: what is tuned each time, for the registry: a model's name.
        source: folder of the training job's sources.
        training_image: of both jobs.
        serving_image: of the container that serves.
        hyperparameters: name → default. Each becomes a parameter of the pipeline, and
            reaches the job as a text, as CreateTrainingJob wants it. Texts travel as
            `utils.jobs.source.hyperparameters` writes them, which `entry.py` undoes.
        entry_script: in `source`.
        requirements: in `source`: what the image lacks; by default the folder's
            requirements.txt, if it has one.
        channels: further channels of the training job: name → s3://…
        evaluation_needs: lines of a requirements.txt for the evaluation.
        min_gain: see `utils.jobs.decision.compare`; a parameter, as the next two.
        alpha: likewise.
        floor: likewise.
        max_new_tokens: most tokens of an answer to a test question.
        instance_type: of both jobs.
        serving_types: instance types that can serve a version.
        max_runtime: seconds for each job.
    """

    name: str
    group: str
    base: str
    source: Path
    training_image: str
    serving_image: str
    hyperparameters: Mapping[str, str | int | float | bool]
    entry_script: str = "entry.py"
    requirements: str | None = None
    channels: Mapping[str, str] = field(default_factory=dict)
    evaluation_needs: tuple[str, ...] = ()
    min_gain: float = 0.0
    alpha: float = 0.05
    floor: float = 0.0
    max_new_tokens: int = 64
    instance_type: str = "ml.g5.xlarge"
    serving_types: tuple[str, ...] = ("ml.g5.xlarge",)
    max_runtime: int = 3600

    def __post_init__(self) -> None:
        """Refuse hyperparameters that cannot be parameters."""
        reserved = {DATA_DIGEST, TEST_DIGEST, LIVE, *RULES}
        for name, value in self.hyperparameters.items():
            if name in reserved or not isinstance(value, str | int | float):
                raise PipelineError(
                    f"The hyperparameter {name!r} is {value!r}: give a text, a number, "
                    f"or True or False, under another name than {sorted(reserved)}."
                )
            if value == "":
                raise PipelineError(
                    f"The hyperparameter {name!r} is an empty text, which no parameter "
                    "of a pipeline may be: leave it out."
                )

    @property
    def needed(self) -> str | None:
        """Name of the file in `source` that says what the image lacks, or None."""
        there = (self.source / REQUIREMENTS).is_file()
        return self.requirements or (REQUIREMENTS if there else None)

    @property
    def noted(self) -> list[str]:
        """Names of the hyperparameters that the registry notes: those that are no text.

        A text may hold characters that the registry refuses, which a pipeline would
        find out when all is trained. The job has them all.
        """
        return [
            name
            for name, value in self.hyperparameters.items()
            if not isinstance(value, str)
        ]

    def place(self, aws: Aws, *parts: str) -> str:
        """Return an address of this pipeline's own."""
        return "/".join([f"s3://{aws.bucket}", self.name, *parts])


# --- what it reads --------------------------------------------------------------------


def upload(aws: Aws, plan: Plan, kind: str, content: bytes) -> str:
    """Put rows where the pipeline looks for them; return their digest.

    First used in lesson 08, section 7.

    Args:
        aws: the account.
        plan: of the pipeline.
        kind: "data" or "test".
        content: JSON Lines.
    """
    found = hashlib.sha256(content).hexdigest()
    bucket, _, key = (
        _address(aws, plan, kind, found).removeprefix("s3://").partition("/")
    )
    aws.session.client("s3").put_object(Bucket=bucket, Key=key, Body=content)
    return found


def _address(aws: Aws, plan: Plan, kind: str, found: str) -> str:
    name = SOURCE if kind == "source" else f"{kind}.jsonl"
    return plan.place(aws, kind, found, name)


def upload_source(aws: Aws, plan: Plan) -> str:
    """Pack the course's modules for the evaluation, and upload them.

    Returns:
        their address, which holds their digest.
    """
    import shutil

    from utils.deployment.artifact import pack

    with temporary_folder(prefix=PREFIX) as folder:
        packed = folder / "source"
        for path in sorted((ROOT / "utils").rglob("*.py")):
            if not set(path.relative_to(ROOT).parts) & set(NOT_PACKED):
                target = packed / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        (packed / "data").mkdir()
        for name in NEEDED_DATA:
            shutil.copyfile(ROOT / "data" / name, packed / "data" / name)
        (packed / "evaluate.sh").write_text(SCRIPT, encoding="utf-8")
        if plan.evaluation_needs:
            text = "\n".join(plan.evaluation_needs) + "\n"
            (packed / REQUIREMENTS).write_text(text, encoding="utf-8")
        content = pack(packed, folder / SOURCE).read_bytes()
    found = upload(aws, plan, "source", content)
    return _address(aws, plan, "source", found)
