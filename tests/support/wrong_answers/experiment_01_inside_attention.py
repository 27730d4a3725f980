"""Mistakes planted in the exercises of experiments/01_inside_attention."""

WRONG_ANSWERS = {
    "check_transplant": [
        (
            'donor, heads = "cow - barn\\ndog - kennel\\ncat -", word_readers',
            "donor's word as well",
        ),
        (
            'donor, heads = "cow - calf\\ndog - puppy\\ncat -", answer_readers',
            "another relation",
        ),
        (
            'donor, heads = "cow - barn\\ndog - kennel\\ncat -", remaining',
            "still answers",
        ),
        (
            'donor, heads = "cow - barn\\nduck - pond\\ncat -", answer_readers',
            "holds 'pond' itself",
        ),
        (
            'donor, heads = "cow - barn\\ndog - kennel", answer_readers',
            "end the donor",
        ),
    ],
    "check_matched": [
        (
            "def matched(group, others):\n    return random.sample(others, len(group))",
            "from the layers",
        ),
        (
            "def matched(group, others):\n"
            "    layers = {layer for layer, _ in group}\n"
            "    same = [head for head in others if head[0] in layers]\n"
            "    return random.sample(same, len(group))",
            "from the layers",
        ),
    ],
}
