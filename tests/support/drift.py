"""Compares the calls in code with what is installed, without running the code.

Names are followed from imports through attributes, calls and assignments, as far as
classes and return annotations tell what a value is. A call of something known must fit
its signature; a call of an AWS client must fit the service's model. What cannot be
known without running, such as an element of a list, is passed over.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import typing
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# What a class method returns that its annotation does not say: function → class.
RESULTS = {
    "AutoTokenizer.from_pretrained": "transformers:PreTrainedTokenizerFast",
    "AutoModelForCausalLM.from_pretrained": "transformers:LlamaForCausalLM",
    "PeftModel.from_pretrained": "peft:PeftModel",
    **dict.fromkeys(
        ("torch.tensor", "torch.zeros", "torch.ones", "torch.arange", "torch.randn"),
        "torch:Tensor",
    ),
}
# Functions that hand on any keyword: where the name must occur for somebody to read it.
HANDS_ON = {
    "AutoTokenizer.from_pretrained": (
        "transformers.models.auto.tokenization_auto",
        "transformers.tokenization_utils_base",
        "transformers.tokenization_utils_tokenizers",
        "transformers.utils.hub",
    ),
    "AutoModelForCausalLM.from_pretrained": (
        "transformers.models.auto.auto_factory",
        "transformers.modeling_utils",
        "transformers.utils.hub",
    ),
    "GenerationMixin.generate": (
        "transformers.generation.utils",
        "transformers.generation.configuration_utils",
    ),
}
# Methods of AWS clients that are no operation of the service.
OF_EVERY_CLIENT = {"get_waiter", "get_paginator", "close", "can_paginate"}


@dataclass(frozen=True)
class Known:
    """A module, class or function itself; `bound` if its first argument is given."""

    value: Any
    bound: bool = False


@dataclass(frozen=True)
class Instance:
    """Some object of a class."""

    kind: type


@dataclass(frozen=True)
class Client:
    """A boto3 client of a service."""

    service: str


Value = Known | Instance | Client | None
Names = dict[str, Value]


@dataclass
class Report:
    """What was found in some code.

    Attributes:
        faults: a sentence for each call that what is installed would refuse.
        compared: calls that were compared with a signature.
        passed_over: calls whose function could not be known.
    """

    faults: list[str] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)


def check_cells(cells: list[str], where: str = "") -> Report:
    """Compare the calls of a notebook's cells, in order, with what is installed.

    Args:
        cells: their code.
        where: what a fault begins with.
    """
    checker = Checker(where)
    names: Names = {}
    for number, code in enumerate(cells, start=1):
        checker.cell = number
        checker.run(ast.parse(code).body, names)
    return checker.report


class Checker:
    """Follows names through code."""

    def __init__(self, where: str) -> None:
        self.where, self.cell = where, 0
        self.report = Report()

    # --- statements -------------------------------------------------------------------

    def run(self, body: list[ast.stmt], names: Names) -> None:
        """Follow statements; `names` is changed as they would change it."""
        for statement in body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self._import(statement, names)
            elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
                self._assign(statement, names)
            elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                self._function(statement, names)
            elif isinstance(statement, ast.ClassDef):
                self.run(statement.body, dict(names))
                names[statement.name] = None
            else:
                self._compound(statement, names)

    def _compound(self, statement: ast.stmt, names: Names) -> None:
        """Follow what may hold other statements; branches are merged."""
        for node in _own_expressions(statement):
            self.value(node, names)
        for target in _targets(statement):
            _forget(target, names)
        branches = []
        for body in _bodies(statement):
            branch = dict(names)
            self.run(body, branch)
            branches.append(branch)
        for branch in branches:
            for name, value in branch.items():
                same = all(one.get(name, value) == value for one in branches)
                was = names.get(name, value)
                names[name] = value if same and was == value else None

    def _import(self, node: ast.Import | ast.ImportFrom, names: Names) -> None:
        for alias in node.names:
            if isinstance(node, ast.Import):
                module = _module(alias.name)
                if module is None:
                    self._fault(f"there is no module {alias.name}")
                    continue
                first = alias.name.partition(".")[0]
                kept = module if alias.asname else _module(first)
                names[alias.asname or first] = Known(kept)
                continue
            module = _module(node.module or "")
            found = _member(module, alias.name) if module else None
            if found is None:
                self._fault(f"{node.module} has no {alias.name}")
            names[alias.asname or alias.name] = found

    def _assign(
        self, node: ast.Assign | ast.AnnAssign | ast.AugAssign, names: Names
    ) -> None:
        value = self.value(node.value, names) if node.value is not None else None
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and not isinstance(node, ast.AugAssign):
                names[target.id] = value
            else:
                self._within(target, names)
                _forget(target, names)

    def _within(self, target: ast.expr, names: Names) -> None:
        """Look at calls in what is assigned to, such as `rows[find(x)] = 1`."""
        for node in ast.iter_child_nodes(target):
            if isinstance(node, ast.expr):
                self.value(node, names)

    def _function(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef, names: Names
    ) -> None:
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.value(default, names)
        inner = dict(names)
        for argument in _arguments(node.args):
            inner[argument] = None
        # A name that the body assigns is its own from the start.
        for found in ast.walk(node):
            if isinstance(found, ast.Name) and isinstance(found.ctx, ast.Store):
                inner[found.id] = None
        self.run(node.body, inner)
        names[node.name] = None

    # --- expressions ------------------------------------------------------------------

    def value(self, node: ast.expr, names: Names) -> Value:
        """Return what an expression is, as far as that is known; look at its calls."""
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, names)
        if isinstance(node, ast.Call):
            return self._call(node, names)
        if isinstance(node, ast.Await):
            self.value(node.value, names)
            return None
        if isinstance(node, ast.NamedExpr):
            names[node.target.id] = value = self.value(node.value, names)
            return value
        if isinstance(node, ast.Lambda):
            inner = {**names, **dict.fromkeys(_arguments(node.args))}
            self.value(node.body, inner)
            return None
        inner = names
        if generators := getattr(node, "generators", None):
            inner = dict(names)
            for generator in generators:
                self.value(generator.iter, inner)
                _forget(generator.target, inner)
                for condition in generator.ifs:
                    self.value(condition, inner)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child, inner)
            elif isinstance(child, ast.keyword | ast.FormattedValue):
                self.value(child.value, inner)
        return None

    def _attribute(self, node: ast.Attribute, names: Names) -> Value:
        owner = self.value(node.value, names)
        if isinstance(owner, Client):
            return None  # its methods are looked at where they are called
        if isinstance(owner, Known):
            found = _member(owner.value, node.attr)
            if found is None and not _makes_attributes(owner.value):
                self._fault(f"{_name(owner.value)} has no {node.attr}")
            return found
        if isinstance(owner, Instance):
            if _may_have(owner.kind, node.attr):
                return _of_instance(owner.kind, node.attr)
            self._fault(f"{_name(owner.kind)} has no {node.attr}")
        return None

    def _call(self, node: ast.Call, names: Names) -> Value:
        for given in node.args:
            self.value(given.value if isinstance(given, ast.Starred) else given, names)
        for keyword in node.keywords:
            self.value(keyword.value, names)
        client = _client(node)
        if isinstance(node.func, ast.Attribute):
            owner = self.value(node.func.value, names)
            if isinstance(owner, Client):
                return self._client_call(owner, node)
        function = self.value(node.func, names)
        text = ast.unparse(node.func)
        if not isinstance(function, Known) or not callable(function.value):
            self.report.passed_over.append(text)
            return client
        refusal = refused(function, node)
        if refusal is None:
            self.report.passed_over.append(text)
        else:
            self.report.compared.append(text)
            if refusal:
                self._fault(f"{text}: {refusal}")
        return client or _result(function)

    def _client_call(self, client: Client, node: ast.Call) -> Value:
        method = node.func.attr
        self.report.compared.append(f"{client.service}.{method}")
        problem = refused_by_aws(client.service, method, node)
        if problem:
            self._fault(f"{client.service}.{method}: {problem}")
        return None

    def _fault(self, text: str) -> None:
        sentence = f"{self.where}, code cell {self.cell}: {text}"
        if sentence not in self.report.faults:
            self.report.faults.append(sentence)


# --- what code says -------------------------------------------------------------------


def _own_expressions(statement: ast.stmt) -> Iterator[ast.expr]:
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.expr) and not _is_target(statement, child):
            yield child
        elif isinstance(child, ast.withitem):
            yield child.context_expr


def _is_target(statement: ast.stmt, child: ast.expr) -> bool:
    return isinstance(statement, ast.For | ast.AsyncFor) and child is statement.target


def _targets(statement: ast.stmt) -> Iterator[ast.expr]:
    if isinstance(statement, ast.For | ast.AsyncFor):
        yield statement.target
    for item in getattr(statement, "items", []):
        if item.optional_vars is not None:
            yield item.optional_vars


def _bodies(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        if body := getattr(statement, name, []):
            yield body
    for handler in getattr(statement, "handlers", []):
        yield handler.body
    for case in getattr(statement, "cases", []):
        yield case.body


def _forget(target: ast.expr, names: Names) -> None:
    for node in ast.walk(target):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names[node.id] = None


def _arguments(arguments: ast.arguments) -> list[str]:
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    given += [one for one in (arguments.vararg, arguments.kwarg) if one]
    return [one.arg for one in given]


def _client(node: ast.Call) -> Value:
    """Return the client that `….client("service")` makes."""
    is_client = isinstance(node.func, ast.Attribute) and node.func.attr == "client"
    if is_client and node.args and isinstance(node.args[0], ast.Constant):
        return Client(str(node.args[0].value))
    return None


# --- what is installed ----------------------------------------------------------------


def _module(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


def _member(owner: Any, name: str) -> Known | None:
    """Return a member of a module or class; None if there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Known(getattr(owner, name))
        except AttributeError:
            pass
        except Exception:
            return Known(None)  # it is there, and will not be looked at
    if inspect.ismodule(owner):
        module = _module(f"{owner.__name__}.{name}")
        return None if module is None else Known(module)
    return None


def _makes_attributes(owner: Any) -> bool:
    """Whether an object may have attributes that cannot be seen from here."""
    if owner is None:
        return True
    kind = type(owner)
    return not (inspect.ismodule(owner) or isinstance(owner, type)) and (
        hasattr(kind, "__getattr__")
    )


def _may_have(kind: type, name: str) -> bool:
    """Whether an object of a class may have an attribute: set in it, or made."""
    if hasattr(kind, name) or hasattr(kind, "__getattr__"):
        return True
    for one in kind.__mro__:
        if name in getattr(one, "__annotations__", {}):
            return True
        if one.__module__ == "builtins":
            continue
        text = _source(one)
        if not text or re.search(rf"\.{name}\b", text):
            return True
    return name in getattr(kind, "__slots__", ())


@functools.cache
def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def _of_instance(kind: type, name: str) -> Value:
    """Return an attribute of an object of a class, if it is a method or annotated."""
    try:
        static = inspect.getattr_static(kind, name)
    except AttributeError:
        return _annotated(kind, name)
    if isinstance(static, staticmethod | classmethod):
        return Known(getattr(kind, name))
    if isinstance(static, property | functools.cached_property):
        function = static.fget if isinstance(static, property) else static.func
        return _result(Known(function))
    if inspect.isroutine(static):
        return Known(getattr(kind, name), bound=True)
    return None


def _annotated(kind: type, name: str) -> Value:
    try:
        hint = typing.get_type_hints(kind).get(name)
    except Exception:
        return None
    return Instance(hint) if isinstance(hint, type) else None


def _result(function: Known) -> Value:
    """Return what a call gives: an object of the class, or as it is annotated."""
    if isinstance(function.value, type):
        return Instance(function.value) if function.value is not type else None
    if place := RESULTS.get(_full_name(function.value)):
        module, _, name = place.partition(":")
        return Instance(getattr(importlib.import_module(module), name))
    try:
        hint = typing.get_type_hints(function.value).get("return")
    except Exception:
        return None
    if isinstance(hint, type) and hint not in (type(None), object):
        return Instance(hint)
    return None


def _full_name(function: Any) -> str:
    """Return a function's name with its class, or with its module for C functions."""
    owner = getattr(function, "__self__", None)
    name = getattr(function, "__name__", "")
    if isinstance(owner, type):
        if owner.__module__.startswith("torch."):
            return f"torch.{name}"
        return f"{owner.__name__}.{name}"
    return getattr(function, "__qualname__", name)


def _name(value: Any) -> str:
    name = getattr(value, "__qualname__", None)
    return name or getattr(value, "__name__", str(value))


def refused(function: Known, call: ast.Call) -> str | None:
    """Return why a function would refuse a call; "" if not, None if it is not known.

    Args:
        function: what is called.
        call: the code of the call.
    """
    given = [keyword.arg for keyword in call.keywords if keyword.arg]
    unpacks = len(given) < len(call.keywords)
    unpacks |= any(isinstance(one, ast.Starred) for one in call.args)
    if isinstance(function.value, type) and issubclass(function.value, dict):
        return None  # takes any keywords
    signature = _signature(function)
    if signature is None:
        return _refused_by_docstring(function.value, given)
    bind = signature.bind_partial if unpacks else signature.bind
    positional = [one for one in call.args if not isinstance(one, ast.Starred)]
    try:
        bind(*positional, **dict.fromkeys(given))
    except TypeError as error:
        return str(error)
    modules = HANDS_ON.get(_full_name(function.value))
    unread = [name for name in given if modules and not _read_by(modules, name)]
    return f"nobody reads {', '.join(unread)}" if unread else ""


def _read_by(modules: tuple[str, ...], name: str) -> bool:
    """Whether the source of one of these modules names a keyword."""
    return any(re.search(rf"\b{name}\b", _module_source(one)) for one in modules)


@functools.cache
def _module_source(name: str) -> str:
    return inspect.getsource(importlib.import_module(name))


def _signature(function: Known) -> inspect.Signature | None:
    """Return a function's signature without an argument that is given already."""
    try:
        signature = inspect.signature(function.value)
    except (ValueError, TypeError):
        return None
    parameters = list(signature.parameters.values())
    # Classes written in other languages may list it as well.
    lists_self = [one.name for one in parameters[:1]] == ["self"]
    given = function.bound or (lists_self and isinstance(function.value, type))
    if (
        given
        and parameters
        and parameters[0].kind
        in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        )
    ):
        signature = signature.replace(parameters=parameters[1:])
    return signature


def _refused_by_docstring(function: Any, given: list[str]) -> str | None:
    """Look for the keywords in the docstring, of a function without a signature."""
    text = inspect.getdoc(function) or ""
    if not text or not given:
        return None
    unknown = [name for name in given if not re.search(rf"\b{name}\b", text)]
    return f"its documentation knows no {', '.join(unknown)}" if unknown else ""


@functools.cache
def _operations(service: str) -> dict[str, Any]:
    """Return the operations of an AWS service: method → model."""
    from botocore import xform_name
    from botocore.session import Session

    model = Session().get_service_model(service)
    names = model.operation_names
    return {xform_name(one): model.operation_model(one) for one in names}


@functools.cache
def _methods(service: str) -> set[str]:
    import boto3

    session = boto3.Session("key", "secret", region_name="us-east-1")
    return set(dir(session.client(service)))


def refused_by_aws(service: str, method: str, call: ast.Call) -> str:
    """Return why a client would refuse a call; "" if not.

    Args:
        service: such as "sagemaker".
        method: such as "create_endpoint".
        call: the code of the call.
    """
    given = {keyword.arg for keyword in call.keywords if keyword.arg}
    unpacks = len(given) < len(call.keywords)
    if method in OF_EVERY_CLIENT or method not in _operations(service):
        return "" if method in _methods(service) else "there is no such method"
    if call.args:
        return "takes keyword arguments only"
    shape = _operations(service)[method].input_shape
    members = set(shape.members) if shape else set()
    needed = set(shape.required_members) if shape and not unpacks else set()
    if given - members:
        return f"there is no {', '.join(sorted(given - members))}"
    if needed - given:
        return f"it needs {', '.join(sorted(needed - given))}"
    return ""
