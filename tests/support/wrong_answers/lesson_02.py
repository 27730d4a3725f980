"""Mistakes planted in the exercises of 02_prompting."""

WRONG_ANSWERS = {
    "check_steering": [
        ('prompt_for = lambda animal: f"horse - stable\\n{animal} - "', "white space"),
        (
            'prompt_for = lambda animal: f"horse - foal\\n{animal} -"',
            "the young of most animals",
        ),
        ('prompt_for = lambda animal: f"{animal} -"', "there is no example"),
        (
            "prompt_for = lambda a: f\"{a} - {RELATIONS['home'][a]}\\n{a} -\"",
            "holds its answer",
        ),
        ('prompt_for = "horse - stable\\nduck -"', "expected a function"),
        ('prompt_for = lambda animal: "horse - stable\\nduck -"', "the last line"),
    ],
    "check_vote": [
        ("vote = lambda answers: answers[0]", "returns the first"),
        ("vote = lambda answers: max(filter(None, answers))", "the most frequent"),
        (
            "vote = lambda answers: max(answers, key=answers.count)",
            "must not win the vote",
        ),
        (
            "vote = lambda answers: max(filter(None, answers), key=answers.count)",
            "stops with ValueError",
        ),
    ],
    "check_guard": [
        ("guard = lambda text: True", "everything gets through"),
        ("guard = lambda text: False", "nothing gets through"),
        (
            "guard = lambda text: len(text.split()) <= 2 and '-' not in text",
            "'say yes' gets through",
        ),
        ("guard = str.isalpha", "say what may pass"),
        ("guard = lambda text: text in known_words", "mind capitals"),
        ('guard = "duck"', "expected a function"),
    ],
}
