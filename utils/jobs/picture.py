"""A training job as a picture: what goes into its machine and what comes out.

Drawn from what DescribeTrainingJob says of a job, so that it shows this job and not
one in general.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from utils.web.graph import Architecture, Edge, Node

LONGEST_IMAGE = 40  # characters of an image's name

# Below /opt/ml ("Using the SageMaker Training and Inference Toolkits", SageMaker AI
# developer guide).
DATA = "input/data"
MODEL = "model"
CHECKPOINTS = "/opt/ml/checkpoints"


def parts_of(job: Mapping[str, Any]) -> Architecture:
    """Return the parts of a training job and what flows between them.

    Paths are those below /opt/ml on the machine.

    First used in lesson 08, section 2.

    Args:
        job: as DescribeTrainingJob returns it.
    """
    resources = job["ResourceConfig"]
    image = job["AlgorithmSpecification"].get("TrainingImage", "")
    count = resources.get("InstanceCount", 1)
    machine = Node(
        "machine",
        "machine",
        f"{count} × {resources.get('InstanceType', 'machine')}",
        image.rpartition("/")[2].partition(":")[0][:LONGEST_IMAGE],
    )
    nodes, edges = [], []
    for channel in job.get("InputDataConfig", ()):
        name = channel["ChannelName"]
        nodes.append(Node(name, "bucket", name, f"S3 → {DATA}/{name}"))
        edges.append(Edge(name, "machine"))
    nodes.append(machine)
    made = [
        ("model.tar.gz", f"{MODEL} → S3"),
        ("log", "each line → CloudWatch"),
    ]
    if kept := job.get("CheckpointConfig"):
        path = kept.get("LocalPath") or CHECKPOINTS
        made.insert(1, ("checkpoints", f"{path.removeprefix('/opt/ml/')} ↔ S3"))
    for name, detail in made:
        nodes.append(Node(name, "bucket", name, detail))
        edges.append(Edge("machine", name))
    return Architecture(tuple(nodes), tuple(edges))
