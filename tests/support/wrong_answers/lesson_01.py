"""Mistakes planted in the exercises of 01_language_models."""

WRONG_ANSWERS = {
    "check_survivors": [
        ("survivors = top_p(scores, 0.9).isfinite().sum()", "top-p at temperature 1"),
        (
            "survivors = top_p(temperature(scores, 2.0), 0.9).isinf().sum()",
            "that many are cut off",
        ),
        (
            "survivors = top_p(temperature(scores, 2.0), 0.9).isfinite().sum() - 1",
            "one is missing",
        ),
        (
            "survivors = top_p(temperature(scores, 0.5), 0.9).isfinite().sum()",
            "multiplied by 2",
        ),
    ],
    "check_encode": [
        ("encode = learn_merges(counts, 4)", "expected a function"),
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
    "check_attention_weights": [
        (
            "second_token = (dots / small_head_width**0.5).softmax(dim=-1)",
            "comes later",
        ),
        (
            "weights = (dots / small_head_width**0.5).softmax(dim=-1)\n"
            "second_token = [weights[0], weights[1], 0]",
            "mask before the softmax",
        ),
        (
            "second_token = torch.tensor([0.0, 1.0, 0.0]).softmax(dim=-1)",
            "use minus infinity",
        ),
        (
            "second_token = [*dots[:2].softmax(dim=-1).tolist(), 0.0]",
            "not scaled",
        ),
        (
            "second_token = [*(dots / small_head_width)[:2].softmax(dim=-1), 0.0]",
            "divide by its root",
        ),
        ("second_token = [0.27, 0.73]", "2 weights for 3 tokens"),
    ],
    "check_adaptation": [
        (
            'ways = {"prices": "fine-tune", "summaries": "prompt", '
            '"tickets": "fine-tune", "scripts": "pre-train"}',
            "last week's prices",
        ),
        (
            'ways = {"prices": "retrieve", "summaries": "pre-train", '
            '"tickets": "fine-tune", "scripts": "pre-train"}',
            "far cheaper",
        ),
        (
            'ways = {"prices": "retrieve", "summaries": "prompt", '
            '"tickets": "prompt", "scripts": "pre-train"}',
            "the long prompt is what costs",
        ),
        (
            'ways = {"prices": "RAG", "summaries": "prompt", '
            '"tickets": "prompt", "scripts": "pre-train"}',
            "is not one of",
        ),
    ],
}
