"""Mistakes planted in the exercises of 01_language_models."""

WRONG_ANSWERS = {
    "check_encode": [
        ('encode = merge(list("hello"), ("l", "l"))', "expected a function"),
        (
            "def encode(word, merges):\n"
            "    symbols = list(word)\n"
            "    for pair in reversed(merges):\n"
            "        symbols = merge(symbols, pair)\n"
            "    return symbols",
            "the first merge of the list goes first",
        ),
        (
            "def encode(word, merges):\n"
            "    for pair in merges:\n"
            "        symbols = merge(list(word), pair)\n"
            "    return symbols if merges else list(word)",
            "keep each result",
        ),
        ("def encode(word, merges):\n    return merge(word, merges[0])", "IndexError"),
        ("def encode(word, merges):\n    return word", "returns str"),
    ],
    "check_window": [
        ("attend_nearby = attend", "unexpected keyword argument"),
        (
            "def attend_nearby(queries, keys, values, window=3):\n"
            "    scores = queries @ keys.mT / queries.shape[-1] ** 0.5\n"
            "    every = torch.ones(scores.shape[-2:], dtype=torch.bool)\n"
            "    hidden = every.triu(1) | every.tril(-window - 1)\n"
            "    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values",
            "one token too wide",
        ),
        (
            "def attend_nearby(queries, keys, values, window=3):\n"
            "    scores = queries @ keys.mT / queries.shape[-1] ** 0.5\n"
            "    every = torch.ones(scores.shape[-2:], dtype=torch.bool)\n"
            "    hidden = every.tril(-window)\n"
            "    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values",
            "later ones are visible",
        ),
        (
            "def attend_nearby(queries, keys, values, window=3):\n"
            "    scores = queries @ keys.mT / queries.shape[-1] ** 0.5\n"
            "    every = torch.ones(scores.shape[-2:], dtype=torch.bool)\n"
            "    hidden = every.triu(window) | every.tril(-window)\n"
            "    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values",
            "looks ahead",
        ),
        (
            "def attend_nearby(queries, keys, values, window=3):\n"
            "    scores = queries @ keys.mT\n"
            "    every = torch.ones(scores.shape[-2:], dtype=torch.bool)\n"
            "    hidden = every.triu(1) | every.tril(-window)\n"
            "    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values",
            "root of the width",
        ),
        (
            "def attend_nearby(queries, keys, values, window=3):\n"
            "    scores = queries @ keys.mT / queries.shape[-1] ** 0.5\n"
            "    every = torch.ones(scores.shape[-2:], dtype=torch.bool)\n"
            "    hidden = every.triu(1) | every.tril(-3)\n"
            "    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values",
            "only 3",
        ),
    ],
    "check_loss": [
        ("next_token_loss = 3.0", "expected a function"),
        (
            "def next_token_loss(scores, ids):\n"
            "    return torch.nn.functional.cross_entropy(scores, ids)",
            "predicts .itself.",
        ),
        (
            "def next_token_loss(scores, ids):\n"
            "    return torch.nn.functional.cross_entropy(scores[1:], ids[:-1])",
            "the wrong way",
        ),
        (
            "def next_token_loss(scores, ids):\n"
            "    return torch.nn.functional.cross_entropy(scores, ids.roll(-1))",
            "meet the first id",
        ),
        (
            "def next_token_loss(scores, ids):\n"
            "    logs = scores.log_softmax(dim=-1)[:-1]\n"
            "    return logs.gather(1, ids[1:, None]).mean()",
            "the sign",
        ),
        (
            "def next_token_loss(scores, ids):\n"
            "    logs = scores.log_softmax(dim=-1)[:-1]\n"
            "    return -logs.gather(1, ids[1:, None]).sum()",
            "that is the sum",
        ),
        (
            "def next_token_loss(scores, ids):\n"
            "    chances = scores.softmax(dim=-1)[:-1]\n"
            "    return -chances.gather(1, ids[1:, None]).mean().log()",
            "the logarithm of the mean",
        ),
    ],
}
