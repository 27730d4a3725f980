"""The picture of a training job shows what its description says."""

from __future__ import annotations

from typing import Any

import pytest

from utils.jobs.picture import parts_of


def job(**changes: Any) -> dict[str, Any]:
    """Return what DescribeTrainingJob says of a job."""
    channels = {"train": "course-1/data/train", "code": "course-1/job/input/code"}
    return {
        "TrainingJobName": "course-1-job",
        "AlgorithmSpecification": {
            "TrainingImage": "1.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.9",
        },
        "InputDataConfig": [
            {
                "ChannelName": name,
                "DataSource": {"S3DataSource": {"S3Uri": f"s3://bucket/{key}"}},
            }
            for name, key in channels.items()
        ],
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/course-1/out/"},
        "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2},
        **changes,
    }


def test_channels_lead_into_the_machine_and_results_out_of_it() -> None:
    parts = parts_of(job())
    ties = {(edge.source, edge.target) for edge in parts.edges}
    assert ties == {
        ("train", "machine"),
        ("code", "machine"),
        ("machine", "model.tar.gz"),
        ("machine", "log"),
    }
    found = {node.id: node for node in parts.nodes}
    assert found["machine"].name == "2 × ml.g5.xlarge"
    assert found["machine"].detail == "pytorch-training"
    assert found["train"].detail == "S3 → input/data/train"
    assert found["model.tar.gz"].detail == "model → S3"


@pytest.mark.parametrize(
    ("given", "detail"),
    [
        ({}, "checkpoints ↔ S3"),
        ({"LocalPath": "/opt/ml/saved"}, "saved ↔ S3"),
        ({"LocalPath": "/elsewhere"}, "/elsewhere ↔ S3"),
    ],
)
def test_checkpoints_are_drawn_where_they_are_kept(given: dict, detail: str) -> None:
    kept = {"S3Uri": "s3://bucket/course-1/checkpoints", **given}
    parts = parts_of(job(CheckpointConfig=kept))
    details = {node.id: node.detail for node in parts.nodes}
    assert details["checkpoints"] == detail
