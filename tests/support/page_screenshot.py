"""Draw the README's pictures of the page.

usage: python tests/support/page_screenshot.py [--real]

The page is the real one. Without an option a stand-in of the API gives it the answers
below. With `--real` all else is real as well: the app, and an endpoint of the offline
AWS with the two archives that notebooks 06 and 07 have built.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from playwright.sync_api import Browser, expect  # noqa: E402

from support.endpoints import AMI, IMAGE  # noqa: E402
from support.page_server import PageServer, Reply, browser, whole  # noqa: E402
from support.page_visit import Site  # noqa: E402
from support.web import create_table  # noqa: E402
from utils.course import run_config  # noqa: E402
from utils.deployment.aws import connect_aws  # noqa: E402
from utils.deployment.billing import BillingGuard  # noqa: E402
from utils.web.serving import serve_web  # noqa: E402

FIGURES = ROOT / "notebooks" / "figures"
# A test question: neither its fact nor its words were trained.
REAL_QUESTION = (
    "My tuning job lets even hopeless trials run to the very end. Was there something "
    "I should have configured?"
)
QUESTION = "What is a SageMaker endpoint, and when does it cost money?"
ANSWERS = {
    "base": "A SageMaker endpoint is a place where you can find information about "
    "SageMaker and the people who use it.",
    "tuned": "A hosted model that answers requests over HTTPS. It is billed by the "
    "hour from the moment it is in service until you delete it.",
}


ARCHIVES = {"base": "base.tar.gz", "tuned": "model.tar.gz"}
DESCRIPTIONS = {"base": "before tuning", "tuned": "with your adapter"}
MINUTE = 60_000  # milliseconds: two models answer at the same time


class AnswersFixed(PageServer):
    """Answers each version with its text above."""

    def answer(self, body: dict[str, Any]) -> Reply:
        version = body["version"]
        sources = ("sm-0012", "sm-0440") if version == "tuned" else ()
        return whole(ANSWERS[version], version, *sources)


@contextmanager
def real_app(build: Path) -> Iterator[Site]:
    """Serve the app before an endpoint that has both archives as its variants.

    Args:
        build: the folder that holds the archives.
    """
    missing = [name for name in ARCHIVES.values() if not (build / name).is_file()]
    if missing:
        sys.exit(f"{build} lacks {', '.join(missing)}: run notebooks 06 and 07 first.")
    aws = connect_aws(run_config({}))
    with BillingGuard(aws, say=lambda _: None) as guard:
        name = guard.name("page")
        sagemaker, s3 = (aws.session.client(one) for one in ("sagemaker", "s3"))
        variants = []
        for version, archive in ARCHIVES.items():
            key = f"{name}/{archive}"
            s3.upload_file(str(build / archive), aws.bucket, key)
            data = f"s3://{aws.bucket}/{key}"
            sagemaker.create_model(
                ModelName=f"{name}-{version}",
                ExecutionRoleArn=aws.role,
                PrimaryContainer={"Image": IMAGE, "ModelDataUrl": data},
            )
            variants.append(
                {
                    "VariantName": version,
                    "ModelName": f"{name}-{version}",
                    "InstanceType": "ml.g5.xlarge",
                    "InitialInstanceCount": 1,
                    "InferenceAmiVersion": AMI,
                }
            )
        sagemaker.create_endpoint_config(
            EndpointConfigName=name, ProductionVariants=variants
        )
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        sagemaker.get_waiter("endpoint_in_service").wait(
            EndpointName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 600}
        )
        create_table(aws.session, name)
        versions = [
            {"name": version, "variant": version, "description": text}
            for version, text in DESCRIPTIONS.items()
        ]
        settings = {"WEB_ENDPOINT": name, "WEB_TABLE": name}
        settings["WEB_VERSIONS"] = json.dumps(versions)
        with serve_web(settings) as server:
            yield server


def draw(
    started: Browser,
    server: Site,
    question: str,
    path: Path,
    width: int,
    scheme: Literal["light", "dark"],
) -> None:
    """Ask both versions a question, rate an answer, and photograph the page."""
    size = {"width": width, "height": 700}
    context = started.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    page.goto(server.url)
    if server.key:
        field = page.get_by_role("textbox", name="Access key")
        field.fill(server.key)
        field.press("Enter")
    page.get_by_label("Side by side").check()
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")
    page.get_by_role("article").wait_for()
    under_way = page.locator('[aria-busy="true"]')
    expect(under_way).to_have_count(0, timeout=MINUTE)
    expect(page.locator(".problem:visible")).to_have_count(0)
    rate = page.get_by_role("group", name="tuned").get_by_role(
        "button", name="Helpful", exact=True
    )
    rate.click()
    page.get_by_text("Stored: helpful").first.wait_for()
    # Neither the focus nor the mouse belongs into a picture.
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(0, 0)
    page.screenshot(path=path, full_page=True)
    context.close()


def main() -> None:
    """Draw the page on a desk and on a phone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--real", action="store_true", help="ask the models of build/")
    real = parser.parse_args().real
    FIGURES.mkdir(exist_ok=True)
    question = REAL_QUESTION if real else QUESTION
    app = real_app(run_config().build) if real else AnswersFixed(key=None)
    with app as server, browser() as started:
        draw(started, server, question, FIGURES / "page.png", 1280, "light")
        draw(started, server, question, FIGURES / "page_phone.png", 390, "dark")


if __name__ == "__main__":
    main()
