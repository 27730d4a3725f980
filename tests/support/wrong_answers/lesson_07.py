"""Mistakes planted in the exercises of 07_api_and_web_app."""

_CONFIG = "from botocore.config import Config\nclient_config = Config({})"
_P = "from scipy.stats import binomtest\ndef p_value(pairs):\n{}"
_COUNTED = (
    "    better = sum(tuned and not base for base, tuned in pairs)\n"
    "    worse = sum(base and not tuned for base, tuned in pairs)\n"
)

WRONG_ANSWERS = {
    "check_patience": [
        (_CONFIG.format("read_timeout=20, connect_timeout=2"), "up to 5 times"),
        (
            _CONFIG.format(
                'read_timeout=20, connect_timeout=2, retries={"max_attempts": 1}'
            ),
            "up to 2 times",
        ),
        (_CONFIG.format('retries={"total_max_attempts": 1}'), r"60 \+ 60 seconds"),
        (
            _CONFIG.format('read_timeout=29, retries={"total_max_attempts": 1}'),
            "reaches nobody",
        ),
        (
            _CONFIG.format('read_timeout=1, retries={"total_max_attempts": 1}'),
            "never want a long answer",
        ),
        (
            _CONFIG.format('read_timeout=None, retries={"total_max_attempts": 1}'),
            "for ever",
        ),
        ("client_config = {'read_timeout': 20}", "botocore.config.Config"),
    ],
    "check_abuse": [
        ("cost = rate * 3600 * per_request", "machines are missing"),
        ("cost = machines * price", "costs something, too"),
        ("cost = rate * 3600 * per_request + price", "scaling adds machines"),
        ("cost = 24 * (rate * 3600 * per_request + machines * price)", "a day"),
        ("cost = 500", "is not it"),
        ('cost = "a lot"', "expected an amount"),
    ],
    "check_p_value": [
        (
            _P.format(
                _COUNTED + "    return binomtest(better, better + worse, "
                "alternative='greater').pvalue"
            ),
            "count both directions",
        ),
        (
            _P.format(_COUNTED + "    return binomtest(better, len(pairs)).pvalue"),
            "Count only those that differ",
        ),
        (
            _P.format(_COUNTED + "    return binomtest(better, better + worse).pvalue"),
            "failed on 2 pairs",
        ),
        (
            _P.format(_COUNTED + "    return binomtest(better, better + worse)"),
            "its attribute is pvalue",
        ),
        ("def p_value(pairs):\n    return 0.01", "give 0.0215"),
        ("p_value = 0.05", "expected a function"),
    ],
}
