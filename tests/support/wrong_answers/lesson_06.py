"""Mistakes planted in the exercises of 06_djl_deployment."""


def _handler(reply: str, get: str = '["text"]') -> str:
    """A handler whose last line is `reply`."""
    lines = [
        "from djl_python import Output",
        "from djl_python.async_utils import create_non_stream_output",
        "",
        "async def handle(inputs):",
        "    if inputs.is_empty():",
        "        return None",
        f"    text = inputs.get_as_json(){get}",
        f"    {reply}",
    ]
    return f"handler = {chr(10).join(lines)!r}"


WRONG_ANSWERS = {
    "check_handler": [
        (
            _handler("return Output().add_as_json({'length': len(text)})"),
            "replies with a plain Output, which ends the worker",
        ),
        (
            _handler("return create_non_stream_output({'length': len(text)})"),
            "the request {} has to get status 400",
        ),
        (
            _handler(
                "return create_non_stream_output({'length': len(text or '')})",
                '.get("text")',
            ),
            "found the reply {'length': 0}",
        ),
        (
            _handler("return create_non_stream_output({'letters': len(text)})"),
            "should be answered {'length': 8}",
        ),
        (
            _handler("return create_non_stream_output({'length': len(text)})").replace(
                "async ", ""
            ),
            "never gets ready",
        ),
        ("handler = len", "expected text"),
    ],
    "check_forgotten_endpoint": [
        ("cost = 14 * price", "Sunday are billed too"),
        ("cost = 48 * price", "Friday evening"),
        ("cost = 62", "each has a price"),
        ("cost = 0.003", "not the questions are billed"),
        ("cost = 50 * price", "would be 50.0 hours"),
        ("cost = 'much'", "expected an amount in US dollars"),
    ],
    "check_payload": [
        (
            'payload = {"inputs": questions[0], "parameters": {"max_tokens": 20}}',
            "another service",
        ),
        (
            'payload = {"inputs": questions[0], "parameters": {"max_new_tokens": 20}}',
            "this is greedy",
        ),
        (
            'payload = {"inputs": questions[0], '
            '"parameters": {"max_new_tokens": 20, "temperature": 0.8}}',
            "give it a seed",
        ),
        (
            'payload = {"inputs": "Why?", '
            '"parameters": {"max_new_tokens": 20, "temperature": 0.8, "seed": 7}}',
            "holds the question",
        ),
        (
            'payload = {"inputs": questions[0], '
            '"parameters": {"max_new_tokens": 20, "do_sample": False, "seed": 7}}',
            "do_sample=False is greedy",
        ),
        (
            'payload = {"inputs": questions[0], '
            '"parameters": {"max_new_tokens": 20, "temperature": None, "seed": 7}}',
            "counts as not given",
        ),
        (
            'payload = {"inputs": questions[0], '
            '"parameters": {"max_new_tokens": 20, "top_k": 1, "seed": 7}}',
            "top_k=1 leaves next to nothing",
        ),
        (
            'payload = {"inputs": questions[0], '
            '"parameters": {"max_new_tokens": 64, "temperature": 0.8, "seed": 7}}',
            "from 1 to 20",
        ),
    ],
}
