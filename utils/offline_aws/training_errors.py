"""Why a training job fails: the reasons of DescribeTrainingJob, as AWS words them.

Where people have met them: "Data download failed:Insufficient disk space" in
aws/sagemaker-python-sdk, issue 128; "Artifact upload failed:Insufficient disk space" in
huggingface/blog, issue 114; "Cannot pull algorithm container" in
aws/sagemaker-python-sdk, issue 1968; "AlgorithmError: , exit code: 1", of a job that
left no failure file, in aws-samples/amazon-sagemaker-ml-pipeline-deploy-with-terraform,
issue 12; that for too little memory in DIAGNijmegen/rse-grand-challenge,
`components/backends/amazon_sagemaker_base.py`. What follows them is ours.
"""

from __future__ import annotations

import errno
import signal

LONGEST_REASON = 1024  # characters; botocore's model of FailureReason
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# A shell's code for what SIGKILL has ended, and what the SDK's driver makes of it.
OUT_OF_MEMORY = (128 + signal.SIGKILL, 256 - signal.SIGKILL)


class JobFailure(Exception):
    """A reason for which a job fails, in the form that AWS gives it."""

    def __str__(self) -> str:
        return super().__str__()[:LONGEST_REASON]


def download_failed(what: str) -> JobFailure:
    """Return the failure of a channel that cannot be fetched."""
    return JobFailure(f"ClientError: Data download failed:{what}")


def upload_failed(what: str) -> JobFailure:
    """Return the failure of results that cannot be stored."""
    return JobFailure(f"ClientError: Artifact upload failed:{what}")


def no_image(image: str, why: str) -> JobFailure:
    """Return the failure of a job whose image there is not."""
    return JobFailure(
        "ClientError: Cannot pull algorithm container. Either the image does not "
        f"exist or its permissions are incorrect. Image {image}: {why}"
    )


def internal_error(error: Exception) -> JobFailure:
    """Return the failure of a job in which the offline AWS itself has a fault.

    AWS says no more than the first two sentences.
    """
    return JobFailure(
        "InternalServerError: We encountered an internal error. Please try again. In "
        f"the offline AWS: {type(error).__name__}: {error}"
    )


def algorithm_failed(written: str, code: int) -> JobFailure:
    """Return the failure of a script that has ended with a code other than 0.

    Args:
        written: what it has left in /opt/ml/output/failure.
        code: of its end, as a shell has it.
    """
    end = f", exit code: {code}"
    if code in OUT_OF_MEMORY:
        return JobFailure(
            "ClientError: Please use an instance type with more memory, or reduce the "
            f"size of job data processed on an instance.{end}"
        )
    start = "AlgorithmError: "
    room = LONGEST_REASON - len(start) - len(end)
    return JobFailure(f"{start}{written.strip()[:room]}{end}")
