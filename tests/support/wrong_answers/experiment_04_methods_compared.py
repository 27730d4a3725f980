"""Mistakes planted in the exercises of experiment 04, methods compared."""


def _scaled(scale: str, product: str = "self.scale * self.layer(*inputs, **options)"):
    return (
        "class Scaled(torch.nn.Module):\n"
        "    def __init__(self, layer, width):\n"
        "        super().__init__()\n"
        "        self.layer = layer\n"
        f"        self.scale = {scale}\n\n"
        "    def forward(self, *inputs, **options):\n"
        f"        return {product}"
    )


def _choose(body: str) -> str:
    lines = "".join(f"\n    {line}" for line in body.splitlines())
    return f"def choose(tried):{lines}"


WRONG_ANSWERS = {
    "check_scaled": [
        (_scaled("torch.nn.Parameter(torch.zeros(width))"), "at first nothing may"),
        (_scaled("torch.ones(width)"), "nothing would be trained"),
        (_scaled("torch.nn.Parameter(torch.ones(1))"), "one number scales the whole"),
        (
            _scaled(
                "torch.nn.Linear(width, width)",
                "self.scale(self.layer(*inputs, **options))",
            ),
            "numbers would be trained",
        ),
        (
            _scaled(
                "torch.nn.Parameter(torch.zeros(width))",
                "self.scale + self.layer(*inputs, **options)",
            ),
            "multiply by them",
        ),
        (
            _scaled(
                "torch.nn.Parameter(torch.ones(width))",
                "self.layer(*inputs, **options)",
            ),
            "never used",
        ),
        (
            _scaled("torch.nn.Parameter(torch.ones(width + 1))"),
            "the model stops with RuntimeError",
        ),
        ("Scaled = lambda layer, width: layer", "expected a class"),
    ],
    "check_choose": [
        ("choose = 0.004", "expected a function"),
        (_choose("return min(tried)"), "look for the lowest loss"),
        (_choose("return min(tried, key=tried.get)"), "at the end of the grid"),
        (_choose("return min(tried.values())"), "a loss: return the rate"),
        (_choose("min(tried, key=tried.get)"), "return what you found"),
        (_choose("return 1 / 0"), "stops with ZeroDivisionError"),
        (
            _choose(
                "rates, best = list(tried), min(tried, key=tried.get)\n"
                "if best == rates[0]:\n"
                "    return 'lower'\n"
                "return 'higher' if best == rates[-1] else best"
            ),
            "need not come in order",
        ),
        (
            _choose(
                "done = {r: one for r, one in tried.items() if one == one}\n"
                "best = min(done, key=done.get)\n"
                "if best == min(done):\n"
                "    return 'lower'\n"
                "return 'higher' if best == max(done) else best"
            ),
            "was tried as well",
        ),
    ],
}
