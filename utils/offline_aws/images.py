"""Whether there can be such a container image, as far as this can be said offline.

An image of the own account is looked for in the offline ECR. Those of AWS are held to
the registries, repositories and tags that the SageMaker SDK lists. Of other accounts
nothing is known but their region.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from utils.offline_aws.errors import AwsFault, invalid
from utils.offline_aws.names import OFFLINE_ACCOUNT, OFFLINE_REGION

ECR_ADDRESS = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr(-fips)?\.(?P<region>[a-z0-9-]+)\.amazonaws\.com"
    r"(\.cn)?/(?P<repository>[a-z0-9._/-]+)"
    r"(:(?P<tag>[\w][\w.-]{0,127})|@(?P<digest>sha256:[0-9a-f]{64}))?"
)
# (account, repository) → tags, or None where the SDK composes them of many parts
Known = dict[tuple[str, str], set[str] | None]


def check_image(container: dict, region: str = OFFLINE_REGION) -> None:
    """Refuse an image that cannot be pulled.

    AWS's texts, where people have reported them: "is invalid" for one without a tag in
    aws/amazon-sagemaker-examples, issue 195; "Requested image … not found" in
    aws-samples/easy-amazon-sagemaker-deployments, issue 4. What follows a colon is
    ours.

    Args:
        container: a ContainerDefinition.
        region: of the endpoint.

    Raises:
        AwsFault: a ValidationException.
    """
    image = container.get("Image")
    if image is None:
        return
    found = ECR_ADDRESS.fullmatch(image)
    if found is None:
        access = (container.get("ImageConfig") or {}).get("RepositoryAccessMode")
        if access == "Vpc":
            return
        raise not_of_ecr(image)
    if found["region"] != region:
        raise invalid(
            f'ECR image "{image}" is invalid: its registry is in {found["region"]}, '
            f"the model in {region}. Take the image from {region}."
        )
    if found["tag"] is None and found["digest"] is None:
        raise invalid(f'ECR image "{image}" is invalid: it has no tag.')
    if found["account"] == OFFLINE_ACCOUNT:
        if not _is_in_own_ecr(found, region):
            raise _not_found(image, "push it to the account's ECR first")
        return
    _check_of_aws(image, found, region)


def not_of_ecr(image: str) -> AwsFault:
    """Return the refusal of an image that is in another registry.

    AWS's text for models: aws/sagemaker-python-sdk, pull request 4700. That jobs are
    refused with the same one is assumed.
    """
    return invalid(
        f'Using non-ECR image "{image}" without Vpc repository access mode is not '
        "supported."
    )


def _check_of_aws(image: str, found: re.Match, region: str) -> None:
    """Refuse an image of AWS's registries that the SDK does not know."""
    known = known_images(region)
    if found["account"] not in {account for account, _ in known}:
        if found["account"] in accounts_elsewhere(region):
            raise _not_found(image, f"AWS's images for {region} lie elsewhere")
        return
    key = (found["account"], found["repository"])
    if key not in known:
        raise _not_found(image, f"AWS has no {found['repository']} for SageMaker")
    tags = known[key]
    if tags is not None and found["tag"] is not None and found["tag"] not in tags:
        newest = ", ".join(sorted(tags, reverse=True)[:3])
        raise _not_found(image, f"this SDK's newest tags are {newest}")


def _not_found(image: str, why: str) -> AwsFault:
    return invalid(f"Requested image {image} not found: {why}.")


def _is_in_own_ecr(found: re.Match, region: str) -> bool:
    from moto.ecr.models import ecr_backends

    repository = ecr_backends[OFFLINE_ACCOUNT][region].repositories.get(
        found["repository"]
    )
    images = [] if repository is None else repository.images
    return any(
        found["tag"] in one.image_tags
        if found["tag"]
        else one.get_image_digest() == found["digest"]
        for one in images
    )


@functools.cache
def _configurations() -> tuple[dict[str, Any], ...]:
    """Return the SDK's lists of images, each version of each framework."""
    spec = importlib.util.find_spec("sagemaker.core")
    if spec is None:
        return ()
    # Not imported: that takes seconds, and only its files are wanted.
    folder = Path(next(iter(spec.submodule_search_locations))) / "image_uri_config"
    found: list[dict[str, Any]] = []

    def collect(content: Any) -> None:
        if not isinstance(content, dict):
            return
        if "registries" in content:
            found.append(content)
        for part in content.values():
            collect(part)

    for path in folder.glob("*.json"):
        collect(json.loads(path.read_text("utf-8")))
    return tuple(found)


@functools.cache
def known_images(region: str) -> Known:
    """Return AWS's repositories in a region, and their tags where they are whole."""
    known: Known = {}
    for version in _configurations():
        account, names = version["registries"].get(region), version.get("repository")
        if account is None or names is None:
            continue
        for name in names if isinstance(names, list) else [names]:
            tag = version.get("tag_prefix")
            whole = tag is not None and not version.get("processors")
            whole = whole and not version.get("py_versions")
            before = known.get((account, name), set())
            if not whole or before is None:
                known[account, name] = None
            else:
                known[account, name] = before | {tag}
    return known


@functools.cache
def accounts_elsewhere(region: str) -> frozenset[str]:
    """Return AWS's accounts that hold images for other regions only."""
    everywhere = {
        account
        for version in _configurations()
        for account in version["registries"].values()
    }
    return frozenset(everywhere - {account for account, _ in known_images(region)})


# The CUDA version of SageMaker's default driver, 470, for families on which it is never
# raised by itself: AWS's page "inference-gpu-drivers" of the developer guide.
DEFAULT_CUDA = {"g4dn": 11, "g5": 11, "p4d": 11}
CUDA_OF_IMAGE = re.compile(r"(?:^|[-.])cu(?P<major>\d\d)\d")
CUDA_OF_AMI = re.compile(
    r"(al2\S+-gpu-[\d-]+)\s.*?CUDA version: (\d+)\.\d+(.*)", re.DOTALL
)
NEWEST_NEEDS = 13  # major version of CUDA that no older driver runs


def cannot_start(container: dict, variant: dict) -> str | None:
    """Say why the machine's driver is too old for an image; None if it is not.

    A container of CUDA 13 does not start on an older driver, and so writes no log. The
    text of AWS's reason: aws-samples/comfyui-on-amazon-sagemaker, issue 2.

    Args:
        container: a ContainerDefinition.
        variant: a ProductionVariant, with or without InferenceAmiVersion.
    """
    tag = (container.get("Image") or "").rpartition(":")[2]
    wanted = CUDA_OF_IMAGE.search(tag)
    family = variant.get("InstanceType", "").split(".")[1:2]
    if wanted is None or int(wanted["major"]) < NEWEST_NEEDS or not family:
        return None
    ami = variant.get("InferenceAmiVersion")
    there = DEFAULT_CUDA.get(family[0]) if ami is None else _drivers().get(ami)
    if there is None or there >= int(wanted["major"]):
        return None
    fitting = [name for name, cuda in _drivers().items() if cuda >= NEWEST_NEEDS]
    return (
        f"CannotStartContainerError. Please ensure the model container for variant "
        f"{variant['VariantName']} starts correctly when invoked with 'docker run "
        f"<image> serve'. Here: the image needs CUDA {wanted['major']}, the driver of "
        f"{variant['InstanceType']} has {there}. Set InferenceAmiVersion to "
        f"{' or '.join(fitting)} in the production variant."
    )


@functools.cache
def _drivers() -> dict[str, int]:
    """Return the CUDA version of each AMI that mounts no newer libraries itself.

    They stand in botocore's model, in the description of InferenceAmiVersion.
    """
    from utils.offline_aws.operations import service_model

    shape = service_model("sagemaker").operation_model("CreateEndpointConfig")
    variants = shape.input_shape.members["ProductionVariants"].member
    text = re.sub("<[^>]+>", " ", variants.members["InferenceAmiVersion"].documentation)
    parts = re.split(r"(?=\bal2\S*-ami-)", text)
    found = [CUDA_OF_AMI.search(part) for part in parts]
    return {
        one[1]: int(one[2]) for one in found if one and "disabled CUDA-compat" in one[3]
    }
