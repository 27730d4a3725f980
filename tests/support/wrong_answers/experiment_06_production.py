"""Mistakes planted in the exercises of experiment 06, what production adds."""

_POLICY = (
    'policy = {{"TargetValue": {target}, "CustomizedMetricSpecification": {{'
    '"MetricName": "{metric}", "Namespace": "AWS/SageMaker", '
    '"Dimensions": {dimensions}, "Statistic": "{statistic}"}}}}'
)
_ENDPOINT = '[{"Name": "EndpointName", "Value": later}]'
_VARIANT = (
    '[{"Name": "EndpointName", "Value": later}, '
    '{"Name": "VariantName", "Value": "AllTraffic"}]'
)


def _policy(
    metric: str = "ApproximateBacklogSizePerInstance",
    target: str = "5.0",
    dimensions: str = _ENDPOINT,
    statistic: str = "Average",
) -> str:
    return _POLICY.format(
        metric=metric, target=target, dimensions=dimensions, statistic=statistic
    )


def _alarm(*parts: str) -> str:
    return f"def latency_alarm(milliseconds):\n    return dict({', '.join(parts)})"


_LIMIT = "Threshold=1000 * milliseconds"
_ABOVE = 'ComparisonOperator="GreaterThanThreshold"'
_P95 = 'ExtendedStatistic="p95"'

WRONG_ANSWERS = {
    "check_async_policy": [
        (
            'policy = {"TargetValue": 5.0, "PredefinedMetricSpecification": '
            '{"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}}',
            "never publishes",
        ),
        (_policy("InvocationsPerInstance"), "is never published here"),
        (_policy("ApproximateBacklogSize"), "that of all machines"),
        (_policy("ModelLatency"), "does not say how many requests wait"),
        (_policy(dimensions=_VARIANT), "with other dimensions"),
        (_policy(dimensions='["EndpointName"]'), "a list of"),
        (_policy(statistic="Sum"), "is its Average"),
        (_policy(target="0"), "a number above 0"),
    ],
    "check_latency_alarm": [
        (_alarm("Threshold=milliseconds", _P95, _ABOVE), "is in milliseconds"),
        (_alarm("Threshold=milliseconds / 1000", _P95, _ABOVE), "should be 250000"),
        (_alarm("Threshold=250_000", _P95, _ABOVE), "should be 800000"),
        (_alarm(_LIMIT, 'Statistic="Average"', _ABOVE), "is what p95 shows"),
        (_alarm(_LIMIT, 'Statistic="Average"', _P95, _ABOVE), "not both"),
        (_alarm(_LIMIT, _P95, _ABOVE, 'Unit="Milliseconds"'), "never goes off"),
        (_alarm(_LIMIT, _P95, 'ComparisonOperator="LessThanThreshold"'), "above the"),
        ("latency_alarm = 500", "expected a function"),
    ],
    "check_utilisation": [
        (
            "share = api * tokens_per_second * 3600 / 1e6 / g5.usd",
            "the other way round",
        ),
        ("share = g5.usd / (tokens_per_second * api / 1e6)", "by the second"),
        (
            "share = 100 * g5.usd / (tokens_per_second * 3600 * api / 1e6)",
            "in per cent",
        ),
        ("share = 0.5", "compare an hour of both"),
        ('share = "half"', "expected a share"),
    ],
}
