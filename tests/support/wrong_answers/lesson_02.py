"""Mistakes planted in the exercises of 02_prompting."""

WRONG_ANSWERS = {
    "check_steering_prompt": [
        ('steering_prompt = "horse - stable\\nduck - "', "ends in white space"),
        ('steering_prompt = "cow - moo\\nduck -"', "'moo' is the sound of cow"),
        ('steering_prompt = "frog - pond\\nduck -"', "gives the answer away"),
        ('steering_prompt = "duck -"', "below an example"),
        ('steering_prompt = "dragon - cave\\nduck -"', "an animal of the lists"),
    ],
    "check_budget": [
        ("budget = round(sum(solution_lengths) / len(solution_lengths))", "average"),
        ("budget = 8", "cut off"),
        ("budget = 10_000", "does not stop by itself"),
    ],
    "check_guard": [
        ("guard = lambda text: True", "everything gets through"),
        ("guard = lambda text: False", "nothing gets through"),
        ("guard = str.isalpha", "'polar bear' is refused"),
        (r"guard = lambda text: '\n' not in text", "an order on one line"),
        (
            "guard = lambda text: len(text.split(' ')) < 3",
            "'cow: calf' gets through",
        ),
        ('guard = "duck"', "expected a function"),
    ],
}
