"""What a file binds anew: where a name leads to other code than its definition, an edit is nothing.

A scope is reached by its name; a method by the class's in the module, then by its own in the class.
Found is whatever binds one of these but the definition, unless it comes before, or takes the old
value along: ``f = torch.compile(f)``, a wrapper that calls it. Names are bound by

- statements of the module or class: assignments, imports, loops, ``with``, ``match``, ``del``;
- functions that say ``global``;
- ``C.f = g``, ``setattr(C, "f", g)``, ``globals()["f"] = g``, ``vars(C).update(f=g)`` and
  ``C.f.__code__ = g``, anywhere in the file; ``C`` may be another name for the class, or unknown.

What other files bind, and what this one does not name, is seen at run time alone.
"""

from __future__ import annotations

import ast
from functools import cached_property
from typing import TYPE_CHECKING

from sglang_commfix.engine.fingerprint import Definition, normal_form
from sglang_commfix.engine.flow import dominates, own_parts, place, written


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sglang_commfix.engine.flow import Placed

_ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
_SETTERS = {"setattr", "delattr", "__setattr__", "__delattr__"}

# Whose name, and which.
Pair = tuple[ast.expr, ast.expr]


class Names:
    """The names of one file, and what binds them."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        self._module = module
        self._tree = tree
        self._placed: list[Placed] = []
        # What statements set by an attribute, a key or a function; and in which class they stand.
        self._stores: list[tuple[ast.stmt, Pair, str]] = []
        self._collect(tree.body, "", set())

    def _collect(self, body: Sequence[ast.stmt], inside: str, shared: set[str]) -> None:
        for one in place(body):
            self._placed.append(one)
            if isinstance(one.node, Definition):
                inner = [each.node for each in place(one.node.body)]
                names = {n for each in inner if isinstance(each, ast.Global) for n in each.names}
                deeper = one.node.name if isinstance(one.node, ast.ClassDef) else inside
                self._collect(one.node.body, deeper, names)
                continue
            pairs = _sets(one.node)
            pairs += [_of_module(name) for name in shared if _binds(one, name)]
            self._stores += [(one.node, pair, inside) for pair in pairs]

    @cached_property
    def _values(self) -> Mapping[str, Sequence[ast.AST]]:
        """For each name of the file, in whatever scope, what it is bound to."""
        values: dict[str, list[ast.AST]] = {}
        for one in self._placed:
            if isinstance(one.node, Definition):
                values.setdefault(one.node.name, []).append(one.node)
                continue
            for path in one.binds:
                if len(path) == 1:
                    values.setdefault(path[0], []).extend(_bound_to(one.node, path[0]))
        return values

    def bound_anew(self, scope: str) -> Iterator[tuple[int, str]]:
        """Yield what may bind ``scope``'s name to other code: the line, and its normal form."""
        space, body, parts = "", self._tree.body, scope.split(".")
        for at, part in enumerate(parts, 1):
            placed = list(place(body))
            own = next(one for one in placed if _defines(one.node, part))
            for one in placed:
                if not _binds(one, part) or (one.index < own.index and dominates(own, one)):
                    continue
                if not self._kept(one.node, part, space, parts[at:], plain=True):
                    path = [f"{type(b.owner.node).__name__}.{b.label}" for b in one.path]
                    yield one.node.lineno, " ".join([*path, _said(one.node, part)])
            for node, pair, inside in self._stores:
                sets = self._may_set(pair, part, space, inside)
                if sets and not self._kept(node, part, space):
                    yield node.lineno, written(node)
            space, body = part, getattr(own.node, "body", [])

    def _may_set(self, pair: Pair, part: str, space: str, inside: str) -> bool:
        """Tell whether ``part`` of the class ``space`` may be set (empty: of the module)."""
        owner, key = pair
        if isinstance(key, ast.Constant):
            return key.value == part and self._is(owner, space, inside) is not False
        if not self._is(owner, space, inside):
            return False
        names = {getattr(one, "value", None) for one in self._reached([key])}
        return part in names or not any(isinstance(name, str) for name in names)

    def _is(
        self, owner: ast.AST, space: str, inside: str, seen: frozenset[str] = frozenset()
    ) -> bool | None:
        """Tell whether ``owner`` is ``space``, or an object of it; ``None``: it may be."""
        own = {space} if space else {"globals", "__name__", self._module}
        if isinstance(owner, (Definition, ast.alias)):
            return isinstance(owner, ast.alias) and owner.name in own
        fields = ("id", "value", "attr") if space else ("id", "value")
        if any(getattr(n, field, None) in own for n in ast.walk(owner) for field in fields):
            return True
        maybe = None if space else False
        if not isinstance(owner, ast.Name):
            return maybe
        if owner.id == "self":
            return maybe if inside == space else False
        values = [] if owner.id in seen else self._values.get(owner.id, [])
        found = {self._is(value, space, inside, seen | {owner.id}) for value in values}
        return True if True in found else False if found == {False} else maybe

    def _reached(
        self, parts: Sequence[ast.AST], stop: str = "", later: Sequence[str] = ()
    ) -> Iterator[ast.AST]:
        """Yield the nodes of ``parts``, and of what their names stand for in this file."""
        todo, seen = list(parts), {stop}
        while todo:
            for node in ast.walk(todo.pop()):
                yield node
                name = node.id if isinstance(node, ast.Name) else stop
                if name not in seen and isinstance(getattr(node, "ctx", None), ast.Load):
                    seen.add(name)
                    for value in self._values.get(name, ()):
                        # A class that has its own method does not pass on that of its bases.
                        body = value.body if isinstance(value, ast.ClassDef) else []
                        own = any(_defines(one, name) for one in body for name in later)
                        todo += body if own else [value]

    def _kept(
        self, node: ast.stmt, part: str, space: str, later: Sequence[str] = (), plain: bool = False
    ) -> bool:
        """Tell whether what ``node`` binds takes along what ``part`` of ``space`` was before."""
        same = {ast.dump(key) for _, key in _sets(node) if not isinstance(key, ast.Constant)}
        value = node.value if isinstance(node, _ASSIGNMENTS) else None
        for one in self._reached([value] if value else own_parts(node), space, later):
            if isinstance(one, ast.Name) and one.id == part and isinstance(one.ctx, ast.Load):
                if plain or not space:
                    return True
            elif (pair := _gets(one)) is not None:
                owner, key = pair
                if getattr(key, "value", "") in later:
                    return True
                its = key.value == part if isinstance(key, ast.Constant) else ast.dump(key) in same
                if its and self._is(owner, space, space) is not False:
                    return True
        return False


def _of_module(name: str) -> Pair:
    return ast.Name("globals", ast.Load()), ast.Constant(name)


def _sets(statement: ast.stmt) -> list[Pair]:
    """Return whose and which names a statement sets, but those of the scope that it stands in."""
    if isinstance(statement, (ast.Assign, ast.Delete)):
        parts: Sequence[ast.AST] = statement.targets
    elif isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
        parts = [statement.target]
    elif isinstance(statement, (ast.Expr, ast.For, ast.AsyncFor, ast.With, ast.AsyncWith)):
        parts = own_parts(statement)
    else:
        return []
    return [pair for part in parts for node in ast.walk(part) for pair in _set_by(node)]


def _set_by(node: ast.AST) -> Iterator[Pair]:
    if isinstance(node, (ast.Attribute, ast.Subscript)):
        if not isinstance(node.ctx, ast.Load):
            yield _code_of(node) or _pair(node)
    elif isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in _SETTERS and len(node.args) > 1:
            yield node.args[0], node.args[1]
        elif name == "update" and isinstance(node.func, ast.Attribute):
            keys = [ast.Constant(one.arg) for one in node.keywords if one.arg]
            for key in (*node.args, *keys):
                yield node.func.value, key


def _pair(node: ast.Attribute | ast.Subscript) -> Pair:
    key = ast.Constant(node.attr) if isinstance(node, ast.Attribute) else node.slice
    return node.value, key


def _code_of(node: ast.AST) -> Pair | None:
    """Return whose code ``f.__code__ = …`` or ``C.f.__code__ = …`` sets."""
    if not (isinstance(node, ast.Attribute) and node.attr == "__code__"):
        return None
    if isinstance(node.value, ast.Name):
        return _of_module(node.value.id)
    return _pair(node.value) if isinstance(node.value, (ast.Attribute, ast.Subscript)) else None


def _gets(node: ast.AST) -> Pair | None:
    """Return whose and which name an expression reads."""
    if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Load):
        return _pair(node)
    if isinstance(node, ast.Call) and node.args:
        if isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            return node.func.value, node.args[0]
        if getattr(node.func, "id", "") == "getattr" and len(node.args) > 1:
            return node.args[0], node.args[1]
    return None


def _defines(node: ast.stmt, name: str) -> bool:
    return isinstance(node, Definition) and node.name == name


def _binds(one: Placed, name: str) -> bool:
    """Tell whether a statement binds ``name`` in the scope that it stands in, and is no ``def``."""
    if isinstance(one.node, (Definition, ast.Global)):
        return False
    bare = isinstance(one.node, ast.AnnAssign) and one.node.value is None
    return not bare and not one.binds.isdisjoint({(name,), ("*",)})


def _imported(node: ast.stmt, name: str) -> list[ast.alias]:
    aliases = node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else []
    return [one for one in aliases if (one.asname or one.name.partition(".")[0]) in {name, "*"}]


def _said(node: ast.stmt, name: str) -> str:
    """Return the normal form of a statement, of an import's as far as it is about ``name``."""
    if isinstance(node, ast.ImportFrom):
        return normal_form(ast.ImportFrom(node.module, _imported(node, name), node.level))
    return written(node)


def _bound_to(node: ast.stmt, name: str) -> Sequence[ast.AST]:
    """Return what a statement binds ``name`` to, as far as it can be told."""
    if isinstance(node, _ASSIGNMENTS):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        plain = isinstance(target, (ast.Name, ast.Tuple, ast.List))
        return [node.value] if plain and node.value else []
    if isinstance(node, (ast.For, ast.AsyncFor)):
        return [node.iter]
    return _imported(node, name) or own_parts(node)
