"""Mistakes planted in the exercises of experiments/01_inside_attention."""

WRONG_ANSWERS = {
    "check_transplant": [
        (
            'donor, heads = "cow - herd\\ndog - pack\\nhorse -", word_readers',
            "donor's word as well",
        ),
        ("donor, heads = homes, answer_readers", "another relation"),
        ("donor, heads = homes, remaining", "still answers"),
        (
            'donor, heads = "cow - herd\\nduck - raft\\nhorse -", answer_readers',
            "holds 'raft' itself",
        ),
        (
            'donor, heads = "cow - herd\\ndog - pack", answer_readers',
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
            "as many heads, but",
        ),
    ],
}
