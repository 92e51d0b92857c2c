"""The normal form of Python source, and its hash, equal on every supported Python.

Two pieces of source have one fingerprint exactly if they differ in nothing but formatting,
comments and docstrings. ``ast.dump`` cannot serve: its text differs between Python versions.
"""

from __future__ import annotations

import ast
import hashlib
import warnings
from functools import cache
from typing import TYPE_CHECKING

from sglang_commfix.engine.errors import SourceError


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sglang_commfix.engine.source import Source

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

_IGNORED = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def parse(source: Source) -> ast.Module:
    """Parse a file; raise :class:`SourceError` if this Python cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are sglang's, and its own import shows them
            return ast.parse(source.text, source.path.name)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SourceError(f"{source.path} cannot be parsed: {error}") from error


def body_without_docstring(node: ast.AST, body: list[ast.stmt]) -> list[ast.stmt]:
    """Return the statements of ``body``, less ``node``'s docstring."""
    if isinstance(node, _WITH_DOCSTRING) and body:
        first = body[0]
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            return body[1:]
    return body


def normal_form(node: ast.AST) -> str:
    """Return the text that stands for ``node`` in comparisons and hashes.

    Raises:
        SourceError: the code is nested too deeply to be walked.

    """
    parts: list[str] = []
    try:
        _walk(node, parts.append)
    except RecursionError as error:
        raise SourceError("the code is nested too deeply to be compared") from error
    return "".join(parts)


def fingerprint(node: ast.AST) -> str:
    """Hash the normal form of ``node``: 16 hexadecimal digits."""
    return hashlib.sha256(normal_form(node).encode("ascii")).hexdigest()[:16]


@cache
def _compared(fields: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in sorted(fields) if name not in _IGNORED)


def _walk(node: ast.AST, emit: Callable[[str], None]) -> None:
    emit(f"({type(node).__name__}")
    for name in _compared(node._fields):
        value = getattr(node, name, None)
        if value is None or value == []:
            continue
        if name == "body" and isinstance(value, list):
            value = body_without_docstring(node, value)
        elif isinstance(node, ast.JoinedStr):
            value = _merged(value)
        emit(f" {name}=")
        _value(value, emit)
    emit(")")


def _value(value: object, emit: Callable[[str], None]) -> None:
    if isinstance(value, ast.AST):
        _walk(value, emit)
    elif isinstance(value, list):
        emit("[")
        for item in value:
            _value(item, emit)
            emit(",")
        emit("]")
    elif isinstance(value, bool) or value is None or value is ...:
        emit(repr(value))
    elif isinstance(value, int):
        emit(f"int:{value:#x}")  # hexadecimal has no limit on the number of digits
    elif isinstance(value, str):
        emit(f"str:{value!a}")  # repr() follows the Unicode tables of each Python
    else:
        emit(f"{type(value).__name__}:{value!r}")


def _merged(values: list[ast.expr]) -> list[ast.expr]:
    """Join neighbouring literal parts of an f-string, which Python versions cut differently."""
    merged: list[ast.expr] = []
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            if not value.value:
                continue
            if merged and isinstance(merged[-1], ast.Constant):
                value = ast.Constant(f"{merged[-1].value!s}{value.value}")  # noqa: PLW2901
                merged.pop()
        merged.append(value)
    return merged


def find_scope(tree: ast.Module, qualified_name: str) -> Definition | None:
    """Find the class or function that ``qualified_name`` (``Class.method``) names.

    Returns ``None`` where there is none. Definitions inside ``if``, ``try``, ``with`` and loops
    count; those inside other functions do not.

    Raises:
        SourceError: the name is defined more than once, so that the file does not say which runs.

    """
    body: list[ast.stmt] = tree.body
    found: Definition | None = None
    for part in qualified_name.split("."):
        try:
            candidates = [node for node in _definitions(body) if node.name == part]
        except RecursionError as error:
            raise SourceError("the code is nested too deeply to be searched") from error
        if not candidates:
            return None
        if len(candidates) > 1:
            lines = ", ".join(str(node.lineno) for node in candidates)
            raise SourceError(f"{qualified_name} is defined more than once (lines {lines})")
        found = candidates[0]
        body = found.body
    return found


def _definitions(body: list[ast.stmt]) -> Iterator[Definition]:
    for node in body:
        if isinstance(node, Definition):
            yield node
        else:
            for suite in suites(node):
                yield from _definitions(suite)


def suites(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """Yield the statement lists that ``node`` holds directly, those of its handlers included.

    Not for each node of :func:`ast.walk`, which meets the handlers once more: :func:`all_suites`.
    """
    for name in ("body", "orelse", "finalbody"):
        suite = getattr(node, name, None)
        if isinstance(suite, list) and suite and isinstance(suite[0], ast.stmt):
            yield suite
    for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield part.body


def all_suites(scope: ast.AST) -> Iterator[list[ast.stmt]]:
    """Yield every statement list in ``scope`` once."""
    waiting = list(suites(scope))[::-1]
    while waiting:
        suite = waiting.pop()
        yield suite
        waiting += [inner for node in suite for inner in suites(node)][::-1]
