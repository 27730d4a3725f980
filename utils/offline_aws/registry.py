"""SageMaker's model registry: versions that keep what was noted of them.

moto stores model packages, but forgets CustomerMetadataProperties when only the
approval changes, deletes nothing, and gives a number a second time. Where AWS's text
for a refusal is not known, it is ours.
"""

from __future__ import annotations

from typing import Any

from utils.offline_aws.wrapping import wrap

PACKAGE = ":model-package/"  # in an ARN, before group and number
MOST_PROPERTIES = 50  # CustomerMetadataMap in botocore's model
PENDING = "PendingManualApproval"


def patch_registry() -> None:
    """Give moto's registry what it lacks.

    - A name is not taken twice, and a number never given again.
    - A new version waits for its approval.
    - Whatever an update does not name stays as it is.
    - Packages and groups can be deleted; a group only when it is empty.
    - A package is found by its ARN or by "group/number".
    """
    from moto.sagemaker.models import SageMakerModelBackend
    from moto.sagemaker.responses import SageMakerResponse

    SageMakerResponse.delete_model_package = _delete_package
    SageMakerResponse.delete_model_package_group = _delete_group
    wrap(SageMakerModelBackend, "create_model_package_group", _with_free_name)
    wrap(SageMakerModelBackend, "create_model_package", _with_next_number)
    wrap(SageMakerModelBackend, "describe_model_package", _by_any_name)
    wrap(SageMakerModelBackend, "update_model_package", _with_the_rest_kept)


def _with_free_name(create: Any, backend: Any, **given: Any) -> str:
    """Create a group, unless its name is taken."""
    group = backend.model_package_groups.get(given["model_package_group_name"])
    if group is not None:
        raise _invalid(f"Model Package Group already exists: {group.arn}")
    return create(backend, **given)


def _with_next_number(create: Any, backend: Any, **given: Any) -> str:
    """Create a package: in a group the next version, which waits for its approval."""
    from moto.sagemaker.models import ModelPackage

    group_name, name = given["model_package_group_name"], given["model_package_name"]
    if group_name and name:
        raise _invalid(
            "Both ModelPackageName and ModelPackageGroupName are provided in the "
            "input. Cannot determine which one to use."
        )
    if not group_name:
        if any(one.model_package_name == name for one in _packages(backend)):
            raise _invalid(f"Model Package already exists: {name}")
        return create(backend, **given)
    group = backend.describe_model_package_group(_last_part(group_name))
    if given["tags"]:
        # botocore's model of CreateModelPackage: in a group "you cannot supply a tag
        # argument".
        raise _invalid("A versioned model package takes the tags of its group: no Tags")
    number = getattr(group, "last_number", 0) + 1
    given |= {
        "model_package_name": group.model_package_group_name,
        "model_package_group_name": group.model_package_group_name,
        "model_approval_status": given["model_approval_status"] or PENDING,
    }
    package = ModelPackage(
        **given,
        model_package_version=number,
        model_package_type="Versioned",
        approval_description=None,
        region_name=backend.region_name,
        account_id=backend.account_id,
    )
    group.last_number = number
    backend.model_packages[package.arn] = package
    backend.model_package_name_mapping[package.arn] = package.arn
    return package.arn


def _by_any_name(describe: Any, backend: Any, model_package_name: str) -> Any:
    return describe(backend, _find(backend, model_package_name).arn)


def _with_the_rest_kept(update: Any, backend: Any, **given: Any) -> str:
    """Change of a package what is named; properties are added to those that it has."""
    package = _find(backend, given["model_package_arn"])
    removed = given["customer_metadata_properties_to_remove"] or ()
    properties = dict(package.customer_metadata_properties or {})
    properties |= given["customer_metadata_properties"] or {}
    properties = {key: text for key, text in properties.items() if key not in removed}
    if len(properties) > MOST_PROPERTIES:
        raise _invalid(
            f"CustomerMetadataProperties would have {len(properties)} entries, and "
            f"{MOST_PROPERTIES} are allowed."
        )
    given |= {
        "model_package_arn": package.arn,
        "customer_metadata_properties": properties or None,
        "customer_metadata_properties_to_remove": [],
    }
    for name in ("model_approval_status", "approval_description"):
        if given[name] is None:
            given[name] = getattr(package, name)
    return update(backend, **given)


def _delete_package(response: Any) -> Any:
    """Answer DeleteModelPackage."""
    from moto.core.responses import EmptyResult

    backend = response.sagemaker_backend
    package = _find(backend, response._get_param("ModelPackageName"))
    del backend.model_packages[package.arn]
    names = backend.model_package_name_mapping
    for name, arn in list(names.items()):
        if arn == package.arn:
            names.pop(name, None)
    return EmptyResult()


def _delete_group(response: Any) -> Any:
    """Answer DeleteModelPackageGroup; botocore names its error ConflictException."""
    from moto.core.responses import EmptyResult
    from moto.sagemaker.exceptions import ConflictException

    backend = response.sagemaker_backend
    name = _last_part(response._get_param("ModelPackageGroupName"))
    group = backend.describe_model_package_group(name)
    held = sum(one.model_package_group_name == name for one in _packages(backend))
    if held:
        raise ConflictException(
            f"{group.arn} holds {held} model packages. Delete them first."
        )
    del backend.model_package_groups[name]
    return EmptyResult()


def _find(backend: Any, name: str) -> Any:
    """Return a package by its ARN, by "group/number", or an unversioned one by name."""
    path = name.partition(PACKAGE)[2] or name
    for package in _packages(backend):
        if package.arn.partition(PACKAGE)[2] == path.lower():
            return package
    raise _invalid(f"ModelPackage {name} does not exist.")


def _packages(backend: Any) -> list[Any]:
    return list(backend.model_packages.values())


def _last_part(name_or_arn: str) -> str:
    return name_or_arn.rpartition("/")[2]


def _invalid(message: str) -> Exception:
    from moto.sagemaker.exceptions import ValidationError

    return ValidationError(message=message)
