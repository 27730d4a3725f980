"""Handlers of the asynchronous mode, judged as the recorded server judges them."""

from __future__ import annotations

import ast

import pytest

from utils.deployment import async_checks
from utils.deployment.artifact import ENTRY_POINT

STREAM = """
async def pieces():
    try:
        async for piece in model():
            yield create_stream_chunk_output({"outputs": piece}, False)
        yield create_stream_chunk_output("", True)
    except Exception as error:
        yield create_stream_chunk_output("", True, error=str(error))
"""
GOOD = {
    "a reply": "    return create_non_stream_output({})",
    "a reply by its module": "    return async_utils.create_non_stream_output({})",
    "an error": "    return create_non_stream_output('', error='bad', code=400)",
    "an error by its code": "    return Output(400, 'bad').add_as_json({})",
    "an error by its method": "    return Output().error('bad', code=400)",
    "nothing": "    return None",
    "the server's own encoding": "    return Output().add(Output.binary_encode({}))",
    "a variable filled so": (
        "    output = Output()\n    output.add(Output.binary_encode({}))\n"
        "    return output"
    ),
    "what cannot be followed": "    return await desk.answer(inputs)",
    "a stream": "    return pieces()" + STREAM,
    "a stream or a reply": (
        "    return pieces() if inputs else create_non_stream_output({})" + STREAM
    ),
}
ENDS = "which ends the worker"
BAD = {
    "a filled Output": ("    return Output().add_as_json({})", ENDS),
    "an empty Output": ("    return Output()", ENDS),
    "an Output by its module": ("    return djl_python.Output()", ENDS),
    "an Output of code 200": ("    return Output(200, 'OK').add_as_json({})", ENDS),
    "a variable": ("    out = Output()\n    out.add_as_json({})\n    return out", ENDS),
    "a helper": (
        "    return answer()\ndef answer():\n    return Output().add_as_json({})",
        "line 5 replies with a plain Output",
    ),
    "a helper that is awaited": (
        "    return await answer()\nasync def answer():\n    return Output()",
        ENDS,
    ),
    "good errors only": (
        "    if not inputs:\n"
        "        return create_non_stream_output('', error='bad', code=400)\n"
        "    return Output().add_as_json({})",
        ENDS,
    ),
    "a stream of plain Outputs": (
        "    return pieces()\nasync def pieces():\n    yield Output().add_as_json({})",
        "yields a plain Output",
    ),
    "a generator": ("    yield create_stream_chunk_output({}, True)", "gives a gene"),
}


def faults(body: str) -> list[async_checks.Finding]:
    source = f"async def handle(inputs):\n    global service\n{body}\n"
    return list(async_checks.async_faults(ast.parse(source), "handle", "model.py"))


@pytest.mark.parametrize("name", GOOD)
def test_right_forms_are_no_findings(name) -> None:
    assert faults(GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_wrong_forms_are_errors(name) -> None:
    body, hint = BAD[name]
    levels = {finding.level for finding in faults(body) if hint in finding.what}
    assert levels == {"error"}, faults(body)


def test_one_wrong_way_out_of_several_is_a_warning() -> None:
    body = "    if inputs:\n        return Output()\n" + GOOD["a reply"]
    assert [finding.level for finding in faults(body)] == ["warning"]


def test_a_stream_that_marks_no_chunk_as_the_last() -> None:
    stream = STREAM.replace('yield create_stream_chunk_output("", True)', "pass")
    stream = stream.replace(", True, error=str(error)", ", False")
    (found,) = faults("    return pieces()" + stream)
    assert "marks no chunk as the last" in found.what


def test_a_stream_without_a_try() -> None:
    stream = "\nasync def pieces():\n    yield create_stream_chunk_output('', True)"
    (found,) = faults("    return pieces()" + stream)
    assert "`pieces` (line 4) has no try of its own" in found.what


def test_the_entry_point_of_the_course_is_right() -> None:
    tree = ast.parse(ENTRY_POINT.read_bytes())
    for name in [n.name for n in tree.body if isinstance(n, ast.AsyncFunctionDef)]:
        assert list(async_checks.async_faults(tree, name, "model.py")) == []
