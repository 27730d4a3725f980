"""Mistakes planted in the exercises of 08_training_jobs."""

_EXTRA = "def extra_seconds(every):\n    return {}"
_GPUS = (
    "import math\n\n\ndef gpus_needed(parameters, each, activations, card):\n"
    "    return {}"
)

WRONG_ANSWERS = {
    "check_bill": [
        ('cost = ran["BillableTimeInSeconds"] / 3600 * price', "one instance"),
        (
            'cost = ran["BillableTimeInSeconds"] * 4 * price',
            "price is that of an hour",
        ),
        (
            'cost = ran["BillableTimeInSeconds"] / 60 * 4 * price',
            "not of a minute",
        ),
        (
            'cost = ran["TrainingTimeInSeconds"] / 3600 * 4 * price',
            "that is TrainingTimeInSeconds",
        ),
        ("cost = 1", "1.00 is not it"),
        ('cost = "little"', "expected an amount"),
    ],
    "check_extra_seconds": [
        (_EXTRA.format("steps / every * save"), "since the last save"),
        (_EXTRA.format("interruptions * every / 2 * step"), "takes time as well"),
        (
            _EXTRA.format("steps / every * save + interruptions * every * step"),
            "half of the interval",
        ),
        (
            _EXTRA.format("steps / every * save + interruptions * every / 2"),
            "what is lost is steps",
        ),
        (_EXTRA.format("steps / every * save + every / 2 * step"), "one interruption"),
        (_EXTRA.format("60"), "it returns 60"),
        (_EXTRA.format("every / 0"), "fails for"),
        ("extra_seconds = 60", "expected a function"),
    ],
    "check_gpus": [
        (
            _GPUS.format("math.ceil(parameters * each / 1e9 / card)"),
            "need room on each",
        ),
        (
            _GPUS.format("math.ceil((parameters * each / 1e9 + activations) / card)"),
            "they are not divided",
        ),
        (
            _GPUS.format("int(parameters * each / 1e9 / (card - activations))"),
            "round up",
        ),
        (
            _GPUS.format("int(parameters * each / 1e9 / (card - activations)) + 1"),
            "you add one more",
        ),
        (
            _GPUS.format("parameters * each / 1e9 / (card - activations)"),
            "cannot be rented",
        ),
        (_GPUS.format("100"), "it returns 100"),
        ("gpus_needed = 8", "expected a function"),
    ],
}
