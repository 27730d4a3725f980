"""A registry of versions: what it notes, who is live, the way back, and AWS's limits.

It takes about 10 seconds.
"""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.endpoints import IMAGE
from utils.deployment.artifact import pack
from utils.deployment.billing import BillingGuard
from utils.deployment.request_checks import validate_request
from utils.web.versions import (
    APPROVED,
    DECISIONS_KEPT,
    PENDING,
    REJECTED,
    Version,
    VersionError,
    Versions,
    digest,
)

NUMBERS = itertools.count()
DATA = "ab" * 32
RECIPE = {
    "learning_rate": 0.0002,
    "lora": {"r": 16, "target_modules": ["q_proj", "v_proj"]},
    "epochs": 3,
}


@pytest.fixture(scope="module")
def run(aws) -> Iterator[BillingGuard]:
    """One guard for all: to make and to end one takes longer than most tests."""
    guard = BillingGuard(aws, say=lambda _: None)
    yield guard
    guard.close()
    assert guard.remaining() == []


@pytest.fixture
def versions(aws, run) -> Versions:
    """A group of the test's own."""
    return Versions(aws, run.name(f"versions-{next(NUMBERS)}"))


def archive(folder: Path, text: str) -> Path:
    content = folder / text
    content.mkdir(exist_ok=True)
    (content / "model.py").write_text(text)
    return pack(content, folder / f"{text}.tar.gz")


def register(versions: Versions, folder: Path, text: str, **more: Any) -> Version:
    file = archive(folder, text)
    aws, key = versions.aws, f"{versions.group}/{text}.tar.gz"
    aws.session.client("s3").upload_file(str(file), aws.bucket, key)
    given = {
        "data": DATA,
        "base": "SmolLM2-135M-Instruct",
        "hyperparameters": RECIPE,
        "metrics": {"right": 0.83125, "loss": 1e-7},
    }
    return versions.register(file, f"s3://{aws.bucket}/{key}", IMAGE, **given | more)


def test_what_was_noted_is_read_back(versions, tmp_path) -> None:
    found = register(versions, tmp_path, "one")
    assert found == versions.get(1)
    assert found.archive == digest(tmp_path / "one.tar.gz")
    assert (found.number, found.status, found.data) == (1, PENDING, DATA)
    assert found.metrics == {"right": 0.83125, "loss": 1e-7}
    assert found.hyperparameters == {
        "learning_rate": "0.0002",
        "lora.r": "16",
        "lora.target_modules": "q_proj v_proj",
        "epochs": "3",
    }
    assert (found.image, found.by, found.decisions) == (IMAGE, "", ())
    metrics = versions._client.describe_model_package(ModelPackageName=found.arn)
    address = metrics["ModelMetrics"]["ModelQuality"]["Statistics"]["S3Uri"]
    bucket, _, key = address.removeprefix("s3://").partition("/")
    body = versions.aws.session.client("s3").get_object(Bucket=bucket, Key=key)["Body"]
    assert b'"right": 0.83125' in body.read()


def test_approval_is_noted_with_who_and_why_and_erases_nothing(
    versions, tmp_path
) -> None:
    before = register(versions, tmp_path, "one")
    assert versions.live() is None
    approved = versions.approve(1, "Ada Lovelace", "+4 points,\n95%: 1 to 7")
    assert (approved.status, approved.by) == (APPROVED, "Ada Lovelace")
    assert approved.why == "+4 points, 95%: 1 to 7"
    for name in ("archive", "data", "base", "hyperparameters", "metrics", "address"):
        assert getattr(approved, name) == getattr(before, name)
    assert versions.live() == approved
    rejected = versions.reject(1, "Grace", "slow")
    assert [text.split(" ")[0] for text in rejected.decisions] == [APPROVED, REJECTED]
    assert versions.live() is None


def test_a_roll_back_rejects_the_live_one_and_returns_the_one_before(
    versions, tmp_path
) -> None:
    for text in ("one", "two", "three", "four"):
        register(versions, tmp_path, text)
    for number in (1, 3, 4):
        versions.approve(number, "Ada", "good")
    assert versions.live().number == 4
    assert versions.previous().number == 3
    assert versions.require_latest(4).number == 4
    with pytest.raises(VersionError, match="Version 4 is live and later than 2"):
        versions.require_latest(2)
    assert versions.roll_back("Ada", "errors").number == 3
    assert versions.live().number == 3
    assert versions.get(4).status == REJECTED
    assert versions.roll_back("Ada", "errors").number == 1  # 2 was never approved
    assert versions.previous() is None
    with pytest.raises(VersionError, match="1 approved versions"):
        versions.roll_back("Ada", "errors")
    assert versions.live().number == 1


def test_lineage_goes_by_digests(versions, tmp_path) -> None:
    first = register(versions, tmp_path, "one")
    second = register(versions, tmp_path, "two", base=first.archive, data="cd" * 32)
    third = register(versions, tmp_path, "three", base=second.archive)
    register(versions, tmp_path, "four")
    assert [v.number for v in versions.lineage(3)] == [3, 2, 1]
    assert [v.number for v in versions.lineage(4)] == [4]
    assert [v.number for v in versions.find(DATA)] == [1, 3, 4]
    assert [v.number for v in versions.find(third.archive[:8])] == [3]
    assert [v.number for v in versions.find(first.archive)] == [1, 2]
    with pytest.raises(VersionError, match="too short"):
        versions.find("ab")
    table = versions.history()
    assert list(table["version"]) == [1, 2, 3, 4]
    assert list(table["right"]) == [0.83125] * 4


def test_an_archives_digest_depends_on_its_content_only(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = archive(tmp_path / "a", "same"), archive(tmp_path / "b", "same")
    other = archive(tmp_path, "other")
    assert digest(one) == digest(two) != digest(other)
    with tarfile.open(one) as tar:
        assert tar.getnames() == ["model.py"]


def test_decisions_never_fill_a_version_up(versions, tmp_path) -> None:
    """A roll-back must not fail because there is no room to note it."""
    many = {f"option{number}": number for number in range(50 - DECISIONS_KEPT - 5)}
    found = register(versions, tmp_path, "one", hyperparameters=many)
    for turn in range(DECISIONS_KEPT + 3):
        found = versions.approve(1, f"person {turn}", "x" * 3000)
    assert len(found.decisions) == DECISIONS_KEPT
    assert found.by == f"person {turn}"
    assert found.decisions[0].endswith("person 3")
    assert len(found.hyperparameters) == len(many)
    assert len(found.why) == 1024


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hyperparameters": {"decay": "5%"}}, r"hyperparameter.decay: found '%'"),
        ({"hyperparameters": {"a,b": 1}}, r"found ',' in 'hyperparameter.a,b'"),
        ({"hyperparameters": {"note": ""}}, "0 characters, expected a text of 1"),
        ({"hyperparameters": {"note": "x" * 257}}, "257 characters"),
        ({"hyperparameters": {"n" * 120: 1}}, "135 characters.*1 to 128"),
        ({"hyperparameters": {"note": "two\nlines"}}, "found '.n'"),
        ({"hyperparameters": {str(n): n for n in range(40)}}, "45 notes.*takes 50"),
        ({"metrics": {"right": float("nan")}}, "metric right is nan"),
        ({"metrics": {"right": True}}, "metric right is True"),
        ({"base": ""}, "base: found 0 characters"),
    ],
)
def test_what_the_registry_does_not_take_is_said_before_it_is_asked(
    aws, tmp_path, change, complaint
) -> None:
    versions = Versions(aws, "course-refused")  # never made, so nothing to delete
    with pytest.raises(VersionError, match=complaint):
        register(versions, tmp_path, "one", **change)
    assert versions.all() == []


def test_letters_of_all_scripts_are_taken(versions, tmp_path) -> None:
    found = register(versions, tmp_path, "one", base="Zoë/模型 v2 :=+-@_.")
    assert versions.get(1).base == found.base == "Zoë/模型 v2 :=+-@_."
    assert versions.approve(1, "Jürgen", "„gut“ (100%)").why == "„gut“ (100%)"


def test_another_archive_than_the_uploaded_one_is_refused(versions, tmp_path) -> None:
    found = register(versions, tmp_path, "one")
    longer = tmp_path / "longer.tar.gz"
    longer.write_bytes((tmp_path / "one.tar.gz").read_bytes() + b"more")
    given = {"data": DATA, "base": "b", "hyperparameters": {}, "metrics": {}}
    with pytest.raises(VersionError, match="upload this archive anew"):
        versions.register(longer, found.address, IMAGE, **given)
    with pytest.raises(VersionError, match="nothing at s3://.*Upload longer.tar.gz"):
        versions.register(longer, found.address + ".gone", IMAGE, **given)
    with pytest.raises(VersionError, match="give s3://bucket/key"):
        versions.register(longer, "https://example.org/a", IMAGE, **given)
    with pytest.raises(VersionError, match="nosuch.tar.gz cannot be read"):
        versions.register(tmp_path / "nosuch.tar.gz", found.address, IMAGE, **given)
    assert [version.number for version in versions.all()] == [1]


def test_versions_and_groups_that_there_are_not(aws, versions, tmp_path) -> None:
    assert (versions.all(), versions.live(), versions.previous()) == ([], None, None)
    with pytest.raises(VersionError, match=r"no version 3. There are: none"):
        versions.approve(3, "Ada", "good")
    register(versions, tmp_path, "one")
    with pytest.raises(VersionError, match=r"no version 3. There are: 1"):
        versions.get(3)
    with pytest.raises(VersionError, match="by: found 0 characters"):
        versions.approve(1, "", "good")
    assert versions.get(1).status == PENDING
    for name in ("", "-a", "a_b", "a" * 64):
        with pytest.raises(VersionError, match="group's name"):
            Versions(aws, name)


def test_requests_fit_awss_own_model(versions, tmp_path, monkeypatch) -> None:
    """Whatever the offline AWS lets pass, botocore's model is held as well."""
    sent = []
    client = versions._client
    for name in ("create_model_package", "update_model_package"):
        original = getattr(client, name)

        def note(_name=name, _original=original, **given: Any) -> Any:
            sent.append(validate_request("sagemaker", _name, **given))
            return _original(**given)

        monkeypatch.setattr(client, name, note)
    register(versions, tmp_path, "one")
    versions.approve(1, "Ada", "good")
    assert len(sent) == 2
