"""Modules of releases, shrunk to one function, and executed with stand-ins for all they import."""

from __future__ import annotations
import __future__

import ast
import builtins
import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from rig.sources.published import tree

from sglang_commfix.engine.fingerprint import Definition
from sglang_commfix.engine.source import Source
from sglang_commfix.engine.tree import Tree


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def shrunk(release: str, module: str, kept: tuple[str, ...]) -> str:
    """The text of a module in which only the functions ``kept`` have their bodies."""
    source = tree(release).source(module)
    assert source is not None
    syntax = ast.parse(source.text)
    for name, node in _definitions(syntax.body, ""):
        if isinstance(node, FUNCTIONS) and name not in kept:
            node.body = [ast.Pass()]
    return ast.unparse(syntax) + "\n"


def _definitions(body: list[ast.stmt], around: str) -> Iterator[tuple[str, Definition]]:
    for node in body:
        if isinstance(node, Definition):
            yield around + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node.body, f"{around}{node.name}.")
        else:
            for part in (node, *getattr(node, "handlers", ())):
                for suite in ("body", "orelse", "finalbody"):
                    yield from _definitions(getattr(part, suite, None) or [], around)


class Stub:
    """Stands for anything: it can be called, read, written, entered, counted and inherited from."""

    def __init__(self, *_: object, **attributes: object) -> None:
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        stub = self.__dict__[name] = Stub()
        return stub

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # As a decorator it leaves the function as it is.
        return args[0] if len(args) == 1 and isinstance(args[0], FunctionType) else Stub()

    def __mro_entries__(self, bases: object) -> tuple[type, ...]:
        return ()

    def __iter__(self) -> Iterator[Any]:
        return iter((Stub(), Stub()))

    def __enter__(self) -> Stub:
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def __getitem__(self, key: object) -> Any:
        return Stub()

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __contains__(self, value: object) -> bool:
        return False

    def __index__(self) -> int:
        return 1

    def _stub(self, other: object = None) -> Stub:
        return Stub()

    def _no(self, other: object) -> bool:
        return False

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __neg__ = _stub
    __floordiv__ = __rfloordiv__ = __truediv__ = __mod__ = __or__ = __ror__ = __and__ = _stub
    __lt__ = __le__ = __gt__ = __ge__ = _no


class Elsewhere(Stub):
    """A module that has the same names as another one, which say no to everything."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: False


Names = dict[str, Any]


def executed(text: str, names: Names) -> Names:
    """Run a module and return its names; what it imports from elsewhere is one of ``names``.

    Raises:
        Exception: whatever the module raises.

    """

    def stand_in(name: str, *args: Any) -> Any:
        if name.partition(".")[0] in sys.stdlib_module_names:
            return builtins.__import__(name, *args)
        return Elsewhere(__all__=[*names]) if name.startswith("elsewhere") else Stub(**names)

    space: Names = {
        "__name__": __name__,
        "__builtins__": {**vars(builtins), "__import__": stand_in},
    }
    flags = __future__.annotations.compiler_flag
    exec(compile(text, "m", "exec", flags=flags, dont_inherit=True), space)
    return space


def instance(space: Names, name: str, **attributes: object) -> Any:
    """An object of a class of a module that was run, of which every attribute is there."""
    kind = space[name]
    kind.__getattr__ = Stub.__getattr__
    one = object.__new__(kind)
    one.__dict__.update(attributes)
    return one


def source_of(made: Tree, module: str) -> Source:
    """The source of a module that is there."""
    source = made.source(module)
    assert source is not None
    return source
