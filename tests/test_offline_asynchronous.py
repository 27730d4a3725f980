"""Asynchronous endpoints: what is asked through S3 is answered in S3."""

from __future__ import annotations

import datetime
import json
import time

import pytest
from botocore.exceptions import ClientError

from support.endpoints import AMI, ECHO, IMAGE, LONG, upload
from utils.deployment.aws import LOG_GROUPS

HANDLER = ECHO.replace(
    "    body = inputs.get_as_json()\n",
    """    body = inputs.get_as_json()
    if body == "bad":
        return Output().error("your fault", code=400)
    if body == "type":
        body = inputs.get_properties().get("Content-Type")
""",
)


class Endpoint:
    """An asynchronous endpoint, its places in S3, and the calls of a user."""

    def __init__(self, aws, name: str, prefix: str):
        self.aws, self.name, self.prefix = aws, name, prefix
        self.s3 = aws.session.client("s3")
        self.runtime = aws.session.client("sagemaker-runtime")

    def put(self, body, key: str = "input.json") -> str:
        """Upload an input; return its address."""
        key = f"{self.prefix}/in/{key}"
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.s3.put_object(Bucket=self.aws.bucket, Key=key, Body=text)
        return f"s3://{self.aws.bucket}/{key}"

    def invoke(self, **parameters) -> dict:
        """Send an invocation; return what was answered at once."""
        return self.runtime.invoke_endpoint_async(
            EndpointName=self.name, ContentType="application/json", **parameters
        )

    def wait(self, address: str, seconds: float = LONG):
        """Return an object, as soon as it is there."""
        bucket, _, key = address.removeprefix("s3://").partition("/")
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.s3.get_object(Bucket=bucket, Key=key)
            except ClientError:
                assert time.monotonic() < deadline, f"{address} does not come"
                time.sleep(0.05)

    def answer(self, body, **more):
        """Return what comes of an input."""
        reply = self.invoke(InputLocation=self.put(body), **more)
        return json.loads(self.wait(reply["OutputLocation"])["Body"].read())

    def failure(self, body, **more) -> str:
        """Return how an input fails; nothing may be at its output."""
        reply = self.invoke(InputLocation=self.put(body), **more)
        text = self.wait(reply["FailureLocation"])["Body"].read().decode()
        with pytest.raises(AssertionError, match="does not come"):
            self.wait(reply["OutputLocation"], 0)
        return text

    def log(self) -> str:
        """Return all lines; there is no group before the first one, as on AWS."""
        client = self.aws.session.client("logs")
        try:
            found = client.filter_log_events(logGroupName=LOG_GROUPS + self.name)
        except client.exceptions.ResourceNotFoundException:
            return ""
        events = found["events"]
        return "\n".join(event["message"] for event in events)


def create(aws, guard, what: str = "async", **output) -> Endpoint:
    """Create an asynchronous endpoint and wait until it serves."""
    client = aws.session.client("sagemaker")
    name = guard.name(what)
    address = upload(aws, guard, {"model.py": HANDLER}, f"{what}.tar.gz")
    client.create_model(
        ModelName=name,
        ExecutionRoleArn=aws.role,
        PrimaryContainer={"Image": IMAGE, "ModelDataUrl": address},
    )
    client.create_endpoint_config(
        EndpointConfigName=name,
        ProductionVariants=[
            {
                "VariantName": "AllTraffic",
                "ModelName": name,
                "InstanceType": "ml.g5.xlarge",
                "InitialInstanceCount": 1,
                "InferenceAmiVersion": AMI,
            }
        ],
        AsyncInferenceConfig={
            "OutputConfig": output,
            "ClientConfig": {"MaxConcurrentInvocationsPerInstance": 2},
        },
    )
    client.create_endpoint(EndpointName=name, EndpointConfigName=name)
    deadline = time.monotonic() + LONG
    while client.describe_endpoint(EndpointName=name)["EndpointStatus"] == "Creating":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return Endpoint(aws, name, guard.run)


@pytest.fixture(scope="module")
def endpoint(aws):
    from utils.deployment.billing import BillingGuard

    guard = BillingGuard(aws, say=lambda _: None)
    place = f"s3://{aws.bucket}/{guard.run}"
    created = create(
        aws, guard, S3OutputPath=f"{place}/out/", S3FailurePath=f"{place}/failed"
    )
    guard._stop_watching()
    BillingGuard.active = None
    yield created
    guard.teardown()
    found = created.s3.list_objects_v2(Bucket=aws.bucket, Prefix=created.prefix)
    for item in found.get("Contents", []):
        created.s3.delete_object(Bucket=aws.bucket, Key=item["Key"])


def test_the_answer_is_written_where_the_reply_says(endpoint) -> None:
    reply = endpoint.invoke(InputLocation=endpoint.put({"a": "é"}), InferenceId="mine")
    assert reply["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert reply["InferenceId"] == "mine"
    place = f"s3://{endpoint.aws.bucket}/{endpoint.prefix}"
    assert reply["OutputLocation"] == f"{place}/out/mine.out"
    assert reply["FailureLocation"] == f"{place}/failed/mine-error.out"
    found = endpoint.wait(reply["OutputLocation"])
    assert json.loads(found["Body"].read()) == {"a": "é"}
    assert found["ContentType"] == "application/json"
    again = [endpoint.invoke(InputLocation=endpoint.put(1)) for _ in range(2)]
    assert len({one["InferenceId"] for one in again}) == 2


def test_name_folder_and_type_can_be_chosen(endpoint) -> None:
    reply = endpoint.invoke(
        InputLocation=endpoint.put("type"),
        Filename="mine.json",
        S3OutputPathExtension="a/b",
    )
    place = f"s3://{endpoint.aws.bucket}/{endpoint.prefix}/out/a/b/mine.json"
    assert reply["OutputLocation"] == place
    found = endpoint.wait(place)["Body"].read()
    assert json.loads(found) == "application/json"


def test_an_input_may_stand_in_the_request(endpoint) -> None:
    reply = endpoint.invoke(Body=b'{"short": 1}')
    found = endpoint.wait(reply["OutputLocation"])["Body"].read()
    assert json.loads(found) == {"short": 1}
    with pytest.raises(ClientError) as failure:
        endpoint.invoke(Body=b"1" * 128_001)
    assert failure.value.response["ResponseMetadata"]["HTTPStatusCode"] == 413


def test_more_than_six_mebibytes_pass_through_s3(endpoint) -> None:
    text = "a" * 7_000_000
    assert endpoint.answer(text) == text


def test_a_containers_error_is_a_failure_object_and_a_line_in_the_log(endpoint) -> None:
    text = endpoint.failure("bad", InferenceId="bad-one")
    assert text.startswith('Received client error (400) from primary with message "')
    assert "your fault" in text
    assert "[sagemaker logs] [bad-one] Received client error (400)" in endpoint.log()
    assert "Received client error (424)" in endpoint.failure(b"no json")


def test_a_reply_without_a_length_fails(endpoint) -> None:
    """As AWS has it; a stream cannot be answered asynchronously."""
    text = endpoint.failure("count", InferenceId="streamed")
    assert "did not specify the required Content-Length header" in text
    assert "[streamed] The response from container primary did not" in endpoint.log()


def test_one_that_takes_too_long_fails(endpoint) -> None:
    text = endpoint.failure("slow", InvocationTimeoutSeconds=1)
    assert "did not answer within 1 s" in text
    assert endpoint.answer("slow") == "slow"  # SageMaker's 60 s do not hold here


def test_many_are_answered_each_for_itself(endpoint) -> None:
    replies = [
        endpoint.invoke(InputLocation=endpoint.put(number, f"{number}.json"))
        for number in range(20)
    ]
    answers = [
        json.loads(endpoint.wait(reply["OutputLocation"])["Body"].read())
        for reply in replies
    ]
    assert answers == list(range(20))


def test_what_cannot_be_answered_is_refused(endpoint, aws) -> None:
    for parameters, message in (
        ({}, "exactly one of InputLocation and Body"),
        ({"InputLocation": endpoint.put(1), "Body": b"1"}, "exactly one of"),
        ({"InputLocation": f"s3://{aws.bucket}/nosuch"}, "There is no object at s3://"),
        ({"InputLocation": "s3://no-such-bucket/a"}, "There is no object at s3://"),
        ({"InputLocation": "https://example.com/a"}, "is no address of the offline"),
        ({"InputLocation": "/etc/passwd"}, "failed to satisfy constraint"),
        (
            {"InputLocation": endpoint.put(1), "InvocationTimeoutSeconds": 3601},
            "at 'invocationTimeoutSeconds' failed to satisfy constraint: Member must "
            "have value less than or equal to 3600",
        ),
        (
            {"InputLocation": endpoint.put(1), "RequestTTLSeconds": 21_601},
            "at 'requestTTLSeconds' failed to satisfy constraint",
        ),
        ({"Body": b"1", "Filename": "a/b"}, "at 'filename' failed to satisfy"),
    ):
        with pytest.raises(ClientError) as failure:
            endpoint.invoke(**parameters)
        assert failure.value.response["Error"]["Code"] == "ValidationError"
        assert message in failure.value.response["Error"]["Message"]


def test_each_kind_of_endpoint_answers_its_own_call_only(endpoint, aws, echo) -> None:
    for call in ("invoke_endpoint", "invoke_endpoint_with_response_stream"):
        with pytest.raises(ClientError, match="asynchronous and answers InvokeEndpoin"):
            getattr(endpoint.runtime, call)(EndpointName=endpoint.name, Body=b"1")
    address = endpoint.put(1)
    with pytest.raises(ClientError, match="not an asynchronous one"):
        endpoint.runtime.invoke_endpoint_async(
            EndpointName=echo.endpoint_name, InputLocation=address
        )
    with pytest.raises(ClientError, match="not found"):
        endpoint.runtime.invoke_endpoint_async(
            EndpointName="nosuch", InputLocation=address
        )


def test_the_bucket_of_the_answer_must_exist(aws, guard) -> None:
    endpoint = create(aws, guard, S3OutputPath="s3://no-such-bucket/out")
    with pytest.raises(ClientError, match=r"bucket of s3://no-such.* does not exist"):
        endpoint.invoke(Body=b"1")


def test_without_a_place_for_failures_the_log_has_them(aws, guard) -> None:
    place = f"s3://{aws.bucket}/{guard.run}/out"
    endpoint = create(aws, guard, S3OutputPath=place)
    reply = endpoint.invoke(Body=b'"bad"', InferenceId="lost")
    assert "FailureLocation" not in reply
    deadline = time.monotonic() + LONG
    while "[lost] Received client error" not in endpoint.log():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_notifications_are_not_played_and_that_is_said(aws, guard) -> None:
    topic = "arn:aws:sns:us-east-1:123456789012:topic"
    with pytest.raises(ClientError, match="does not play notifications"):
        create(
            aws,
            guard,
            S3OutputPath=f"s3://{aws.bucket}/out",
            NotificationConfig={"ErrorTopic": topic},
        )


def test_it_publishes_the_metrics_that_such_endpoints_have(endpoint, aws) -> None:
    """Not Invocations and their like: scaling on those never scales."""
    endpoint.answer(1)
    endpoint.failure("bad")
    client = aws.session.client("cloudwatch")
    found = client.list_metrics(
        Namespace="AWS/SageMaker",
        Dimensions=[{"Name": "EndpointName", "Value": endpoint.name}],
    )["Metrics"]
    names = {metric["MetricName"] for metric in found}
    assert names >= {
        "ApproximateBacklogSize",
        "Invocation4XXErrors",
        "InvocationFailures",
        "InvocationsProcessed",
        "ModelLatency",
        "TimeInBacklog",
    }
    assert not names & {"Invocations", "InvocationsPerInstance", "OverheadLatency"}
    now = datetime.datetime.now(datetime.UTC)
    points = client.get_metric_statistics(
        Namespace="AWS/SageMaker",
        MetricName="ApproximateBacklogSize",
        Dimensions=[{"Name": "EndpointName", "Value": endpoint.name}],
        StartTime=now - datetime.timedelta(minutes=30),
        EndTime=now + datetime.timedelta(minutes=1),
        Period=3600,
        Statistics=["Maximum", "Minimum"],
    )["Datapoints"]
    assert points[0]["Maximum"] >= 1
    assert points[0]["Minimum"] == 0


def test_deleting_it_ends_what_waits(aws, guard) -> None:
    place = f"s3://{aws.bucket}/{guard.run}/out"
    endpoint = create(aws, guard, S3OutputPath=place)
    replies = [endpoint.invoke(Body=b'"slow"') for _ in range(8)]
    aws.session.client("sagemaker").delete_endpoint(EndpointName=endpoint.name)
    time.sleep(2)
    found = endpoint.s3.list_objects_v2(
        Bucket=aws.bucket, Prefix=f"{guard.run}/out"
    ).get("Contents", [])
    assert len(found) < len(replies)
    for item in found:
        endpoint.s3.delete_object(Bucket=aws.bucket, Key=item["Key"])
