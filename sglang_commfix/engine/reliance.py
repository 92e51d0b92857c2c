"""What a place in a function relies on, worked out from its syntax, and hashed: its form.

New text is more than its anchor. It does on another tree what it does on a release only if it is
reached in the same way, and reads and writes the same. Of a function of three hundred lines that is
a dozen; the others may be edited by anybody. The form of a place is the hash of

- the statements of the anchor, and the headers of all that stands around it;
- every earlier statement that may leave, with its headers: ``return``, ``break`` and ``continue``
  of a loop around the anchor, and a ``raise`` that the function itself may catch;
- the definitions that reach what all these read, recursively; for an attribute that is set in the
  function also the calls behind that may set it again;
- where the names that it writes are assigned next;
- parameters, decorators, whether the function is a generator, and what binds each free name in the
  module.

Where a place only shows that the fault is not there, definitions and bindings do not count.

What uses the result further down is not followed: an entry names that itself where it matters.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from sglang_commfix.engine.errors import SourceError
from sglang_commfix.engine.fingerprint import Definition, body_without_docstring, normal_form
from sglang_commfix.engine.flow import (
    FUNCTIONS,
    LOOPS,
    Path,
    Placed,
    collect,
    dominates,
    exclude_each_other,
    gets,
    own_parts,
    place,
    yields,
)
from sglang_commfix.engine.register import parsed


if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from sglang_commfix.engine.register import Clause
    from sglang_commfix.engine.rewrite import Anchor

    # For each name of a module, what binds it: one line for each statement that does.
    Bindings = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Form:
    """The form of one place.

    Attributes:
        digest: the hash that is compared.
        parts: what it is of, one line each, for people.

    """

    digest: str
    parts: tuple[str, ...]


def form_of(
    bound: Bindings,
    scope: Definition,
    anchor: Anchor,
    clause: Clause,
) -> Form:
    """Work out what the anchor of a clause, and its new text there, rely on.

    Args:
        bound: what binds the names of the module.
        scope: the class or function of it that holds the anchor.
        anchor: the statements.
        clause: what it is for. Where the anchor is kept and new text does nothing but return one
            constant, an earlier exit that returns the same takes nothing from it.

    Raises:
        SourceError: the code is nested too deeply to be walked.

    """
    try:
        inner = _innermost(scope, anchor)
        form = _Slice(bound, inner, anchor, clause).form()
        return form if inner is scope else _form([f"in {inner.name}", *form.parts])
    except RecursionError as error:
        raise SourceError("the code is nested too deeply to be compared") from error


def bindings_for(bound: Bindings, added: Sequence[ast.stmt]) -> Form:
    """Work out what text behind a module's last line relies on: what binds the names it takes."""
    reads: set[Path] = set()
    binds: set[Path] = set()
    for node in added:
        collect(node, reads, binds)
    own = {path[0] for path in binds}
    return _form(list(_taken(bound, {path[0] for path in reads} - own)))


def _taken(bound: Bindings, names: Collection[str]) -> Iterator[str]:
    """Say what binds each of ``names``, which are not bound in a function."""
    for name in sorted(names):
        for line in bound.get(name, () if hasattr(builtins, name) else ("nothing",)):
            yield f"{name} is {line}"
    # Any name may come from there.
    yield from (f"* is {line}" for line in bound.get("*", ()))


def names_in(scope: ast.AST) -> frozenset[str]:
    """Return every name that a piece of code mentions: defined, read, imported, an attribute."""
    names: set[str] = set()
    for node in ast.walk(scope):
        for field_name in _naming(node._fields):
            value = getattr(node, field_name, None)
            if isinstance(value, str):
                names.update(value.split("."))
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            names.update(node.names)
    return frozenset(names)


@cache
def _naming(fields: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(n for n in ("id", "attr", "name", "asname", "arg", "module") if n in fields)


def _form(parts: Sequence[str]) -> Form:
    return Form(hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16], tuple(parts))


def _innermost(scope: Definition, anchor: Anchor) -> Definition:
    """Return the function or class, in ``scope`` or itself, whose own suites hold the anchor."""
    for node in ast.walk(scope):
        if isinstance(node, Definition) and any(
            one.node is anchor.first for one in place(body_without_docstring(node, node.body))
        ):
            return node
    return scope


class _Slice:
    def __init__(
        self,
        bound: Bindings,
        scope: Definition,
        anchor: Anchor,
        clause: Clause,
    ) -> None:
        self._deep = clause.deep
        self._given = clause.given
        self._bound = bound
        self._scope = scope
        self._statements = list(place(body_without_docstring(scope, scope.body)))
        wanted = anchor.suite[anchor.start : anchor.stop]
        self._anchor = [one for one in self._statements if one.is_inside(wanted)]
        self._added = list(place(parsed(clause.text)))
        self._harmless = _only_value(self._added or self._anchor) if clause.kept else None
        self._local = {path[0] for one in self._statements for path in one.binds if len(path) == 1}
        self._local |= {path[0] for one in self._added for path in one.binds if len(path) == 1}
        self._kept: dict[int, Placed] = {}
        self._followed: set[int] = set()
        self._names: set[str] = set()

    def form(self) -> Form:
        first, last = self._anchor[0], self._anchor[-1]
        for one in self._anchor:
            self._keep(one)
        for path in _reads_in_order(self._added):
            self._define(path, first)
        for one in self._statements[: first.index]:
            if self._leaves(one, first):
                self._keep(one)
        for path in {path for one in (*self._anchor, *self._added) for path in one.binds}:
            self._assigned_next(path, last)
        parts = [*self._signature(), *self._lines(), *self._bindings()]
        return _form(parts)

    def _keep(self, one: Placed) -> None:
        """Rely on a statement, on the headers around it, and on what all of them read."""
        if one.index in self._followed:
            return
        self._followed.add(one.index)
        self._kept[one.index] = one
        for branch in one.path:
            self._keep(branch.owner)
        for path in one.reads:
            self._define(path, one)

    def _leaves(self, one: Placed, anchor: Placed) -> bool:
        if isinstance(one.node, (ast.Break, ast.Continue)):
            loops = [b.owner for b in one.path if isinstance(b.owner.node, LOOPS)]
            around = [branch.owner for branch in anchor.path]
            if not loops or loops[-1] not in around:
                return False
        elif isinstance(one.node, ast.Return):
            if self._harmless and normal_form(one.node) == self._harmless:
                return False
        elif isinstance(one.node, ast.Raise):
            # One that nobody in the function catches ends it, whether anything was edited or not.
            if not any(isinstance(branch.owner.node, ast.Try) for branch in one.path):
                return False
        else:
            return False
        return not exclude_each_other(one, anchor)

    def _define(self, path: Path, use: Placed) -> None:
        """Rely on the definitions of a name or attribute that reach ``use``."""
        if not self._deep or path[0] in self._given:
            return
        self._names.add(path[0])
        loops = [b.owner for b in use.path if isinstance(b.owner.node, LOOPS)]
        for one in reversed(self._statements):
            looped = any(branch.owner in loops for branch in one.path) or one in loops
            if one.index >= use.index and not looped:
                continue
            touched = [bound for bound in one.binds if _touches(bound, path)]
            if not touched or exclude_each_other(one, use):
                continue
            self._keep(one)
            if len(path) > 1 and len(touched[0]) > 1:
                self._calls_between(path[0], one, use)
            exact = any(bound == path[: len(bound)] for bound in touched)
            if exact and one.is_plain and one.index < use.index and dominates(one, use):
                break

    def _calls_between(self, root: str, start: Placed, stop: Placed) -> None:
        for one in self._statements[start.index + 1 : stop.index]:
            parts = own_parts(one.node)
            calls = [n for part in parts for n in ast.walk(part) if isinstance(n, ast.Call)]
            if any(gets(call, root) for call in calls) and not exclude_each_other(one, stop):
                self._keep(one)

    def _assigned_next(self, path: Path, anchor: Placed) -> None:
        for one in self._statements[anchor.index + 1 :]:
            if path not in one.binds or exclude_each_other(one, anchor):
                continue
            for whole in (one, *(branch.owner for branch in one.path)):
                self._kept[whole.index] = whole
            if one.is_plain and dominates(one, anchor):
                break

    def _lines(self) -> Iterator[str]:
        numbers = {index: number for number, index in enumerate(sorted(self._kept))}
        wanted = {one.index for one in self._anchor}
        for index, number in numbers.items():
            one = self._kept[index]
            around = " ".join(f"{numbers[b.owner.index]}.{b.label}" for b in one.path)
            mark = ">" if index in wanted else " "
            yield f"{mark} {number} [{around}] {one.written}"

    def _signature(self) -> Iterator[str]:
        yield type(self._scope).__name__ + (" with yield" if yields(self._statements) else "")
        for decorator in self._scope.decorator_list:
            yield f"@ {normal_form(decorator)}"
        if not isinstance(self._scope, FUNCTIONS):
            return
        arguments = self._scope.args
        plain = [*arguments.posonlyargs, *arguments.args]
        defaults: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults))
        defaults += arguments.defaults
        named = [*zip(plain, defaults, strict=True)]
        named += [*zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
        for argument, default in named:
            if argument.arg in self._names:
                value = "" if default is None else normal_form(default)
                yield f"parameter {argument.arg} {value}"
        for star in (arguments.vararg, arguments.kwarg):
            if star is not None and star.arg in self._names:
                yield f"parameters {star.arg}"

    def _bindings(self) -> Iterator[str]:
        parameters = set()
        if isinstance(self._scope, FUNCTIONS):
            nodes = ast.walk(self._scope.args)
            parameters = {node.arg for node in nodes if isinstance(node, ast.arg)}
        free = self._names - parameters - self._local
        yield from _taken(self._bound, free)


def module_bindings(module: ast.Module) -> Bindings:
    """Return what binds each name that a module defines, one line for each statement that does."""
    found: dict[str, list[str]] = {}
    for one in place(body_without_docstring(module, module.body)):
        around = "".join(f" in {b.owner.written}.{b.label}" for b in one.path)
        if isinstance(one.node, (ast.Import, ast.ImportFrom)):
            source = ""
            if isinstance(one.node, ast.ImportFrom):
                source = f"{'.' * one.node.level}{one.node.module or ''}:"
            for alias in one.node.names:
                name = alias.asname or alias.name.partition(".")[0]
                found.setdefault(name, []).append(f"{source}{alias.name}{around}")
        elif isinstance(one.node, Definition):
            what = f"{type(one.node).__name__}{around}"
            found.setdefault(one.node.name, []).append(what)
        else:
            for path in one.binds:
                if len(path) == 1:
                    found.setdefault(path[0], []).append(f"{one.written}{around}")
    return found


def _reads_in_order(added: Iterable[Placed]) -> Iterator[Path]:
    """Yield what new text reads and has not bound itself before."""
    bound: set[Path] = set()
    for one in added:
        yield from (path for path in one.reads if path[:1] not in bound)
        if one.is_plain and not one.path:
            bound |= one.binds


def _only_value(added: Sequence[Placed]) -> str | None:
    """Return the one statement ``return CONSTANT`` that is all that new text does."""
    returns = set()
    for one in added:
        if isinstance(one.node, ast.Return) and isinstance(one.node.value, ast.Constant):
            returns.add(normal_form(one.node))
        elif not isinstance(one.node, (ast.If, ast.Import, ast.ImportFrom)):
            return None
    return returns.pop() if len(returns) == 1 else None


def is_denial(statement: ast.stmt) -> bool:
    """Tell whether all that a statement does is to return a constant, under a condition."""
    return isinstance(statement, ast.If) and _only_value(list(place([statement]))) is not None


def _touches(bound: Path, read: Path) -> bool:
    """Tell whether binding one path may change what reading the other gives."""
    short = min(len(bound), len(read))
    return bound[:short] == read[:short]
