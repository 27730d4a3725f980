"""Mistakes in the exercises of lesson 09, the capstone, and the hints they must get."""

WRONG_ANSWERS = {
    "check_leaks": [
        (
            "def leaks(train, held_out):\n"
            "    known = {row['instruction'] for row in train}\n"
            "    return sum(row['instruction'] in known for row in held_out)",
            "compare groups",
        ),
        (
            "def leaks(train, held_out):\n"
            "    return len(set(groups_of(train)) & set(groups_of(held_out)))",
            "you count groups",
        ),
        ("def leaks(train, held_out):\n    return len(held_out)", "a trained group"),
        ("leaks = 0", "expected a function"),
        ("def leaks(train, held_out):\n    return train['x']", "stops with TypeError"),
    ],
    "check_rule": [
        (
            "def rule(gain):\n    return 'tuned' if gain.value > 0 else 'baseline'",
            "whose interval begins below 0",
        ),
        (
            "def rule(gain):\n    return 'tuned' if gain.low > 0.5 else 'baseline'",
            "it refuses a gain",
        ),
        ("def rule(gain):\n    return 'tuned'", "a model that is worse"),
        ("def rule(gain):\n    return gain.low > 0", "return 'tuned' or 'baseline'"),
        ("rule = 'tuned'", "expected a function"),
    ],
    "check_sentence": [
        (
            "sentence = f'The tuned model gains {points} points on {gain.n}.'",
            "without both bounds",
        ),
        (
            "sentence = f'{points} points ({low} to {high}), n {gain.n}, always'",
            "'always' promises more",
        ),
        ("sentence = f'It gains {points} ({low} to {high}).'", "how many questions"),
        (
            "sentence = f'{points}% more right ({low} to {high}), on {gain.n}.'",
            "in percentage points",
        ),
        ("sentence = 'It gains 999 points.'", "the measured gain"),
        ("sentence = points", "expected a sentence"),
    ],
}
