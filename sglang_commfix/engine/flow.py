"""The statements of a function: where they stand, and what each reads and binds by itself."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from sglang_commfix.engine.fingerprint import Definition, normal_form


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A name, or a chain of attributes: ("self", "server_args", "tp_size").
Path = tuple[str, ...]

LOOPS = (ast.For, ast.AsyncFor, ast.While)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_WITH_NAMES_OF_THEIR_OWN = (*FUNCTIONS, ast.ClassDef, ast.Lambda, *_COMPREHENSIONS)


@dataclass(frozen=True, eq=False)
class Branch:
    """One suite of a compound statement."""

    owner: Placed
    label: str

    def same(self, other: Branch) -> bool:
        """Tell whether the other is the same suite of the same statement."""
        return self.owner is other.owner and self.label == other.label


class Placed:
    """A statement, where it stands, and what it reads and binds by itself, without its suites."""

    def __init__(self, node: ast.stmt, index: int, path: tuple[Branch, ...]) -> None:
        self.node = node
        self.index = index
        self.path = path

    @property
    def reads(self) -> frozenset[Path]:
        """The names and attributes that it reads."""
        return self._collected[0]

    @property
    def binds(self) -> frozenset[Path]:
        """The names and attributes that it binds."""
        return self._collected[1]

    @cached_property
    def _collected(self) -> tuple[frozenset[Path], frozenset[Path]]:
        reads: set[Path] = set()
        binds: set[Path] = set()
        for part in own_parts(self.node):
            collect(part, reads, binds)
        return frozenset(reads), frozenset(binds)

    @cached_property
    def written(self) -> str:
        """Its normal form, without its suites."""
        return written(self.node)

    def is_inside(self, statements: Sequence[ast.stmt]) -> bool:
        """Tell whether it is one of ``statements``, or in a suite of one."""
        return any(self.node is one for one in statements) or any(
            branch.owner.node is one for branch in self.path for one in statements
        )

    @property
    def is_plain(self) -> bool:
        """Whether it always binds what it binds, whole."""
        return not isinstance(self.node, (ast.AugAssign, ast.If, ast.Match, ast.Try, *LOOPS))


def place(body: Sequence[ast.stmt]) -> Iterator[Placed]:
    """Yield the statements of ``body``, those of their suites behind each, in order."""
    counter = iter(range(10**9))

    def walk(suite: Sequence[ast.stmt], path: tuple[Branch, ...]) -> Iterator[Placed]:
        for node in suite:
            one = Placed(node, next(counter), path)
            yield one
            if not isinstance(node, Definition):
                for label, inner in _branches(node):
                    yield from walk(inner, (*path, Branch(one, label)))

    return walk(body, ())


def _branches(node: ast.stmt) -> Iterator[tuple[str, list[ast.stmt]]]:
    for label in ("body", "orelse", "finalbody"):
        suite = getattr(node, label, None)
        if isinstance(suite, list):
            yield label, suite
    for number, part in enumerate((*getattr(node, "handlers", ()), *getattr(node, "cases", ()))):
        yield f"{number}", part.body


def own_parts(node: ast.stmt) -> list[ast.AST]:
    """Return what a statement evaluates by itself: all of it, or the header."""
    if isinstance(node, (ast.If, ast.While)):
        return [node.test]
    if isinstance(node, (ast.For, ast.AsyncFor)):
        return [node.target, node.iter]
    if isinstance(node, (ast.With, ast.AsyncWith)):
        return list(node.items)
    if isinstance(node, ast.Match):
        guards = [case.guard for case in node.cases if case.guard]
        return [node.subject, *(case.pattern for case in node.cases), *guards]
    if handlers := getattr(node, "handlers", None):
        return [
            ast.ExceptHandler(type=handler.type, name=handler.name, body=[]) for handler in handlers
        ]
    if isinstance(node, ast.Try):
        return []
    return [node]


def written(node: ast.stmt) -> str:
    """Return the normal form of a statement without its suites."""
    parts = own_parts(node)
    if parts == [node]:
        return normal_form(node)
    return f"{type(node).__name__} {' '.join(normal_form(part) for part in parts)}"


def _dotted(node: ast.AST) -> Path | None:
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)):
        return (*before, node.attr)
    return None


def collect(node: ast.AST, reads: set[Path], binds: set[Path]) -> None:
    """Collect the names and attributes that ``node`` reads, and those that it binds."""
    if isinstance(node, (ast.Name, ast.Attribute)) and (path := _dotted(node)):
        if isinstance(node.ctx, ast.Load):
            reads.add(path)
        else:
            binds.add(path)
            reads |= {path[:-1]} if len(path) > 1 else set()
        return
    if isinstance(node, _WITH_NAMES_OF_THEIR_OWN):
        _collect_inside(node, reads, binds)
        return
    _collect_by_kind(node, reads, binds)
    for child in ast.iter_child_nodes(node):
        collect(child, reads, binds)


def _collect_by_kind(node: ast.AST, reads: set[Path], binds: set[Path]) -> None:
    """Collect what ``node`` reads and binds in another way than by a name in it."""
    if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
        binds |= {path} if (path := _dotted(node.value)) else set()
    elif isinstance(node, ast.AugAssign):
        reads |= {path} if (path := _dotted(node.target)) else set()
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        binds |= {(alias.asname or alias.name.partition(".")[0],) for alias in node.names}
    elif isinstance(node, (ast.Global, ast.Nonlocal)):
        binds |= {(name,) for name in node.names}
    elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
        binds.add((node.name,))
    elif isinstance(node, ast.MatchMapping) and node.rest:
        binds.add((node.rest,))
    elif isinstance(node, ast.Call):
        binds |= _set_by_name(node)


def _set_by_name(call: ast.Call) -> set[Path]:
    """Return what ``setattr(object, "name", …)``, ``vars(object)`` and the like may bind."""
    named = isinstance(call.func, ast.Name) and call.func.id in {"setattr", "delattr", "vars"}
    path = _dotted(call.args[0]) if named and call.args else None
    if path is None:
        return set()
    name = call.args[1] if len(call.args) > 1 else None
    if isinstance(name, ast.Constant) and isinstance(name.value, str):
        return {(*path, name.value)}
    return {path}


def _collect_inside(node: ast.AST, reads: set[Path], binds: set[Path]) -> None:
    """Collect what a function, a class or a comprehension takes from around it."""
    inner_reads: set[Path] = set()
    inner_binds: set[Path] = set()
    for child in ast.iter_child_nodes(node):
        collect(child, inner_reads, inner_binds)
    own = {path[0] for path in inner_binds if len(path) == 1}
    own |= {child.arg for child in ast.walk(node) if isinstance(child, ast.arg)}
    reads |= {path for path in inner_reads if path[0] not in own}
    if isinstance(node, Definition):
        binds.add((node.name,))
    for inside in ast.walk(node):
        # Those are names of the function around.
        if isinstance(inside, (ast.Global, ast.Nonlocal)):
            binds |= {(name,) for name in inside.names}
        elif isinstance(inside, ast.NamedExpr) and isinstance(node, _COMPREHENSIONS):
            binds.add((inside.target.id,))


def yields(statements: Sequence[Placed]) -> bool:
    """Tell whether the function that these are of is a generator."""
    parts = (part for one in statements for part in own_parts(one.node))
    return any(_yields(part) for part in parts if not isinstance(part, Definition))


def _yields(node: ast.AST) -> bool:
    if isinstance(node, (ast.Yield, ast.YieldFrom)):
        return True
    inner = (child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.Lambda))
    return any(map(_yields, inner))


def gets(call: ast.Call, root: str) -> bool:
    """Tell whether ``call`` gets the object ``root``, and so may set its attributes."""
    receiver = _dotted(call.func)
    if receiver and len(receiver) == 2 and receiver[0] == root:
        return True
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    return any(isinstance(value, ast.Name) and value.id == root for value in values)


def dominates(one: Placed, other: Placed) -> bool:
    """Tell whether ``one`` is executed wherever the later ``other`` is, or the other way round."""
    return len(one.path) <= len(other.path) and all(
        mine.same(its) for mine, its in zip(one.path, other.path, strict=False)
    )


def exclude_each_other(one: Placed, other: Placed) -> bool:
    """Tell whether the statements stand in two branches of one ``if``."""
    for mine, its in zip(one.path, other.path, strict=False):
        if mine.owner is not its.owner:
            return False
        if mine.label != its.label:
            return isinstance(mine.owner.node, (ast.If, ast.Match))
    return False
