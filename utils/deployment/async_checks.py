"""What a handler of the asynchronous mode replies, as far as its source tells.

Each rule is one that the real server was recorded to follow (`async_…` in
tests/data/djl_conformance.json):

- a reply is made by `create_non_stream_output`, a stream is a returned generator of
  `create_stream_chunk_output`;
- a plain `Output`, filled by `add_as_json` or left empty, ends the worker for good,
  unless its code says that it is an error;
- a generator that raises, or never marks a chunk as the last, leaves its client
  waiting.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from utils.deployment.findings import Finding, error, warning

Function = ast.FunctionDef | ast.AsyncFunctionDef
REPLY, CHUNK = "create_non_stream_output", "create_stream_chunk_output"
WAIT = 120  # seconds that a client waits for a chunk: `chunked_read_timeout`
FATAL = "ends the worker: the request gets 500, and every later one 503"
WRITE_REPLY = f"Return {REPLY}(…) of djl_python.async_utils"
WRITE_CHUNK = f"Yield {CHUNK}(…) of djl_python.async_utils"


@dataclass(frozen=True)
class Reply:
    """One way out of a handler.

    Attributes:
        line: where it stands.
        kind: "right", "fatal", "error" (a reply that tells of a failure), "nothing"
            (None, which is a 204), or "unknown".
    """

    line: int
    kind: str


def async_faults(tree: ast.Module, handler: str, name: str) -> Iterator[Finding]:
    """Find faults of a handler that is called in asynchronous mode.

    Args:
        tree: the entry point.
        handler: the name of its function.
        name: of the entry point.
    """
    functions = {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    function = functions.get(handler)
    if not isinstance(function, ast.AsyncFunctionDef):
        return  # `check_handler` says so
    if _is_generator(function):
        yield error(
            name,
            f"`async def {handler}` holds a yield, so that calling it gives a "
            "generator, which cannot be awaited: the worker restarts for ever",
            "Move the yield into a function of its own and return what that gives",
        )
        return
    reader = _Reader(functions)
    replies = list(reader.replies(function))
    good = [reply for reply in replies if reply.kind in ("right", "unknown")]
    level = "warning" if good else "error"
    for line in sorted({reply.line for reply in replies if reply.kind == "fatal"}):
        what = f"line {line} replies with a plain Output, which {FATAL}"
        yield Finding(name, what, WRITE_REPLY, level)
    for stream in reader.streams:
        yield from _stream_faults(stream, name, level)


class _Reader:
    """Follows what a function returns.

    Attributes:
        streams: the generators that were found on the way.
    """

    def __init__(self, functions: dict[str, Function]):
        self.functions = functions
        self.streams: list[Function] = []
        self._seen: set[str] = set()

    def replies(self, function: Function) -> Iterator[Reply]:
        """Yield the ways out of a function, each once."""
        self._seen.add(function.name)
        outputs = _plain_outputs(function)
        for node in _own_nodes(function):
            if isinstance(node, ast.Return):
                yield from self._of(node.value, node.lineno, outputs)

    def _of(
        self, value: ast.expr | None, line: int, outputs: dict[str, str]
    ) -> Iterator[Reply]:
        if value is None or isinstance(value, ast.Constant) and value.value is None:
            yield Reply(line, "nothing")
        elif isinstance(value, ast.Await):
            yield from self._of(value.value, line, outputs)
        elif isinstance(value, ast.IfExp):
            yield from self._of(value.body, line, outputs)
            yield from self._of(value.orelse, line, outputs)
        elif isinstance(value, ast.Name):
            yield Reply(line, outputs.get(value.id, "unknown"))
        elif isinstance(value, ast.Call):
            yield from self._of_call(value, line)
        else:
            yield Reply(line, "unknown")

    def _of_call(self, call: ast.Call, line: int) -> Iterator[Reply]:
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        function = self.functions.get(name) if isinstance(call.func, ast.Name) else None
        if name == REPLY:
            tells = any(keyword.arg in ("error", "code") for keyword in call.keywords)
            yield Reply(line, "error" if tells else "right")
        elif function is not None and _is_generator(function):
            if function not in self.streams:
                self.streams.append(function)
            kinds = {_kind_of_chunk(chunk) for chunk in _yields(function)}
            yield Reply(line, "stream" if kinds == {"fatal"} else "right")
        elif function is not None and function.name not in self._seen:
            yield from self.replies(function)
        else:
            yield Reply(line, _kind_of_output(call) or "unknown")


def _stream_faults(stream: Function, name: str, level: str) -> Iterator[Finding]:
    """Find what is wrong with a generator that a handler returns."""
    chunks = list(_yields(stream))
    fatal = [chunk for chunk in chunks if _kind_of_chunk(chunk) == "fatal"]
    if fatal:
        what = f"line {fatal[0].lineno} yields a plain Output, which {FATAL}"
        yield Finding(name, what, WRITE_CHUNK, level)
        return
    if chunks and all(_is_never_last(chunk) for chunk in chunks):
        yield Finding(
            name,
            f"`{stream.name}` marks no chunk as the last: the client waits for "
            f"{WAIT} s, and is cut off",
            f"End with {CHUNK}(data, True)",
            level,
        )
    if not any(isinstance(node, ast.Try) and node.handlers for node in stream.body):
        yield warning(
            name,
            f"`{stream.name}` (line {stream.lineno}) has no try of its own: if it "
            f"raises, the client waits for {WAIT} s, and is cut off",
            f"Catch what is raised and yield {CHUNK}(…, True, error=…)",
        )


def _own_nodes(function: Function) -> Iterator[ast.AST]:
    """Yield the nodes of a function without those of the functions in it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop(0)
        yield node
        if not isinstance(node, Function | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)


def _is_generator(function: Function) -> bool:
    kinds = (ast.Yield, ast.YieldFrom)
    return any(isinstance(node, kinds) for node in _own_nodes(function))


def _yields(function: Function) -> Iterator[ast.expr]:
    """Yield what a generator yields."""
    for node in _own_nodes(function):
        if isinstance(node, ast.Yield) and node.value is not None:
            yield node.value


def _kind_of_chunk(value: ast.expr) -> str:
    return (_kind_of_output(value) if isinstance(value, ast.Call) else None) or "right"


def _is_never_last(value: ast.expr) -> bool:
    """Return whether a chunk says in so many words that it is not the last."""
    if not isinstance(value, ast.Call):
        return False
    if getattr(value.func, "id", getattr(value.func, "attr", "")) != CHUNK:
        return False
    if any(keyword.arg in ("error", "code") for keyword in value.keywords):
        return False  # an error ends a stream, whatever it says
    given = [k.value for k in value.keywords if k.arg == "last_chunk"]
    given += value.args[1:2]
    return bool(given) and isinstance(given[0], ast.Constant) and not given[0].value


def _plain_outputs(function: Function) -> dict[str, str]:
    """Return the kind of each variable that holds an Output made in the function."""
    kinds: dict[str, str] = {}
    for node in _own_nodes(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            kind = _kind_of_output(node.value)
            names = [t.id for t in node.targets if isinstance(t, ast.Name)]
            kinds.update(dict.fromkeys(names, kind) if kind else {})
    for node in _own_nodes(function):
        # `output.add(…)` with the server's own encoding, or `output.error(…)`.
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = getattr(_root(node), "id", "")
            if owner in kinds and _saves(node):
                kinds[owner] = "unknown"
    return kinds


def _kind_of_output(call: ast.Call) -> str | None:
    """Return what becomes of `Output(…)` and methods on it; None of anything else."""
    node: ast.expr = call
    saved = False
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        saved = saved or _saves(node)
        if node.func.attr == "Output":  # djl_python.Output(…)
            break
        node = node.func.value
    name = ""
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
    if name != "Output":
        return None
    codes = [*node.args[:1], *(k.value for k in node.keywords if k.arg == "code")]
    if saved:
        return "unknown"
    if not codes:
        return "fatal"
    code = codes[0].value if isinstance(codes[0], ast.Constant) else None
    if not isinstance(code, int):
        return "unknown"
    return "error" if code >= 300 else "nothing" if code == 204 else "fatal"


def _saves(call: ast.Call) -> bool:
    """Return whether a method makes a reply that the server can read."""
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    return method in ("error", "add", "add_stream_content")


def _root(node: ast.AST) -> ast.AST:
    while isinstance(node, ast.Call | ast.Attribute):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node
