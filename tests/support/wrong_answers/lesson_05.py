"""Mistakes planted in the exercises of 05_evaluation."""

WRONG_ANSWERS = {
    "check_held_out_loss": [
        (
            "loss_of_all = sum(batch_losses) / len(batch_losses)",
            "the mean of the batches",
        ),
        (
            "loss_of_all = sum(b * n for b, n in zip(batch_losses, batch_tokens))",
            "all tokens together",
        ),
        (
            "loss_of_all = sum(b * n for b, n in zip(batch_losses, batch_tokens)) "
            "/ len(batch_losses)",
            "not by the number of batches",
        ),
        (
            "import math\n"
            "total = sum(b * n for b, n in zip(batch_losses, batch_tokens))\n"
            "loss_of_all = math.exp(total / sum(batch_tokens))",
            "its logarithm",
        ),
    ],
    "check_token_f1": [
        (
            "def f1(answer, expected):\n"
            "    found, wanted = set(words(answer)), set(words(expected))\n"
            "    shared = len(found & wanted)\n"
            "    return 2 * shared / (len(found) + len(wanted))",
            "shares one word",
        ),
        (
            "def f1(answer, expected):\n"
            "    found, wanted = words(answer), words(expected)\n"
            "    return sum(word in wanted for word in found) / len(found)",
            "precision alone",
        ),
        (
            "def f1(answer, expected):\n"
            "    found, wanted = words(answer), words(expected)\n"
            "    return sum(word in found for word in wanted) / len(wanted)",
            "recall alone",
        ),
        (
            "def f1(answer, expected):\n"
            "    found, wanted = answer.split(), expected.split()\n"
            "    shared = sum((Counter(found) & Counter(wanted)).values())\n"
            "    return 2 * shared / (len(found) + len(wanted))",
            "use `words`",
        ),
        (
            "def f1(answer, expected):\n"
            "    found, wanted = words(answer), words(expected)\n"
            "    shared = sum((Counter(found) & Counter(wanted)).values())\n"
            "    p, r = shared / len(found), shared / len(wanted)\n"
            "    return 2 * p * r / (p + r)",
            "before you divide",
        ),
        ('f1 = "both"', "expected a function"),
    ],
    "check_votes": [
        ('votes = ["A", "B"]', "give each pair one"),
        ('votes = ["tuned"] * len(pairs)', "name the side"),
        ('votes = ["left"] * len(pairs)', "it can be 'A', 'B' or '='"),
        ('votes = ["A"] * len(pairs)', "prefers nobody"),
    ],
    "check_questions": [
        (
            "n_questions = questions_needed("
            "np.std(differences) / len(differences) ** 0.5, 0.05)",
            "standard error",
        ),
        ("n_questions = questions_needed(np.var(differences), 0.05)", "the variance"),
        ("n_questions = questions_needed(np.std(differences), 5)", "five points"),
        ("n_questions = len(differences)", "standard deviation of `differences`"),
    ],
}
