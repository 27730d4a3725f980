"""Mistakes planted in the exercises of 05_evaluation."""

WRONG_ANSWERS = {
    "check_judge": [
        (
            "def my_judge(answer, row):\n    return True\n\n\nanswer = my_judge",
            "calls every answer right",
        ),
        ("answer = my_judge", "split the cell at '|'"),
        (
            "def my_judge(answer, row):\n"
            "    parts = row['must_say'].lower().split(' | ')\n"
            "    return any(part in answer.lower() for part in parts)\n\n\n"
            "answer = my_judge",
            "'28 days' in '128 days'",
        ),
        (
            "def my_judge(answer, row):\n"
            "    return row['must_say'] in row['answer']\n\n\nanswer = my_judge",
            "raises KeyError",
        ),
        ("answer = my_judge('28 days', rows[0])", "expected a function"),
    ],
    "check_interval": [
        ("answer = interval", "gets narrower"),
        (
            "def interval(gains, facts, share=0.95):\n"
            "    return gains.mean(), gains.mean()\n\n\nanswer = interval",
            "no width",
        ),
        (
            "def interval(gains, facts, share=0.95):\n"
            "    generator = np.random.default_rng(0)\n"
            "    names, place = np.unique(facts, return_inverse=True)\n"
            "    sums = np.bincount(place, weights=gains)\n"
            "    drawn = generator.integers(len(names), size=(5_000, len(names)))\n"
            "    tail = (1 - share) / 2\n"
            "    return np.quantile(sums[drawn].mean(axis=1), [tail, 1 - tail])"
            "\n\n\nanswer = interval",
            "divide the sum of the drawn gains",
        ),
        (
            "def interval(gains, facts, share=0.95):\n"
            "    generator = np.random.default_rng(0)\n"
            "    names, place = np.unique(facts, return_inverse=True)\n"
            "    sums = np.bincount(place, weights=gains)\n"
            "    counts = np.bincount(place)\n"
            "    drawn = generator.integers(len(names), size=(5_000, len(names)))\n"
            "    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)\n"
            "    return np.quantile(means, [0.025, 0.975])\n\n\nanswer = interval",
            "argument `share`",
        ),
    ],
    "check_votes": [
        ('votes = ["A", "B"]', "give each pair one"),
        ('votes = ["tuned"] * len(pairs)', "name the side"),
        ('votes = ["left"] * len(pairs)', "it can be 'A', 'B' or '='"),
        ('votes = ["A"] * len(pairs)', "prefers nobody"),
    ],
}
