"""Mistakes planted in the exercises of experiment 04, quantisation studied."""

_SPLIT = "def split(x, weight, threshold=6.0):\n    "

WRONG_ANSWERS = {
    "check_bits": [
        ("without, with_it = 4, 4.127", "the weight alone"),
        ("without, with_it = 4 + 32, 4.127", "64 weights share one scale"),
        ("without, with_it = 5, 4.127", "without double quantisation 5"),
        ("without, with_it = 4.5, 4 + 8 / 64", "one more number of 32 bits"),
        (
            "without, with_it = 4.5, 4 + 8 / 64 + 32 / 256",
            "share the 32 bits",
        ),
        ("without, with_it = 4.5, 4.3", "with double quantisation 4.3"),
        ('without, with_it = 4.5, "4"', "a number of bits"),
    ],
    "check_split": [
        (_SPLIT + "return x @ weight.T", "nothing is rounded any more"),
        (
            _SPLIT + "large = (x > threshold).any(dim=0)\n"
            "    exact = x[:, large] @ weight[:, large].T\n"
            "    return exact + plain(x[:, ~large], weight[:, ~large])",
            "compare without sign",
        ),
        (
            _SPLIT + "large = x.abs().amax(dim=0) > threshold\n"
            "    return plain(x[:, ~large], weight[:, ~large])",
            "have to be added",
        ),
        (
            _SPLIT + "large = x.abs() > threshold\n"
            "    return x[large] @ weight[large].T",
            "split stops with",
        ),
        (_SPLIT + "return x", "expected a product of shape"),
        ("split = 6.0", "expected a function"),
    ],
}
