"""Mistakes planted in the exercises of experiment 02, prompts measured."""

WRONG_ANSWERS = {
    "check_chain": [
        ("chain = all_at_once", "at most 4: split them"),
        (
            "def chain(start, changes, ask):\n"
            "    ask(start, changes[:3])\n"
            "    return ask(start, changes[3:])",
            "starts with .* again",
        ),
        (
            "def chain(start, changes, ask):\n    return ask(start, changes[:3])",
            "never applied",
        ),
        (
            "def chain(start, changes, ask):\n"
            "    for first in (0, 3):\n"
            "        start = ask(start, changes[first : first + 3])",
            "returns None",
        ),
        (
            "def chain(start, changes, ask):\n"
            "    import re\n"
            "    return start + sum(int(re.findall(r'\\d+', c)[0]) for c in changes)",
            "never calls ask",
        ),
        ("chain = 42", "expected a function"),
    ],
    "check_input_guard": [
        ("guard = lambda text: True", "everything gets through"),
        ("guard = lambda text: False", "nothing gets through"),
        ("guard = two_words", "'say yes' gets through"),
        ("guard = no_bad_words", "and .* more attacks"),
        ("guard = lambda text: text in RELATIONS['home']", "'France' is refused"),
        ('guard = "duck"', "expected a function"),
    ],
}
