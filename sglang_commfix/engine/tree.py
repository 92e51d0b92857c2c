"""An sglang tree as the engine sees it: the source and the syntax of its modules."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from sglang_commfix.engine.effect import Names
from sglang_commfix.engine.errors import SourceError
from sglang_commfix.engine.fingerprint import find_scope, fingerprint, parse
from sglang_commfix.engine.register import parsed
from sglang_commfix.engine.reliance import bindings_for, form_of, module_bindings, names_in
from sglang_commfix.engine.rewrite import anchors_in
from sglang_commfix.engine.source import Source
from sglang_commfix.files import short_digest


if TYPE_CHECKING:
    from collections.abc import Mapping

    from sglang_commfix.engine.register import Clause, Target
    from sglang_commfix.engine.reliance import Bindings
    from sglang_commfix.files import Sglang

# The first in 0.5.7 and later, the second before. Each assigns a literal.
_VERSION_MODULES = ("sglang._version", "sglang.version")
_VERSION = re.compile(
    r"""^__version__\s*(?::[^=]+)?=\s*(?:version\s*=\s*)?["']([^"']+)["']""", re.M
)


@dataclass(frozen=True)
class Stands:
    """Where a clause stands in a tree, and in which form.

    Attributes:
        form: its form; ``None`` if it does not stand there exactly once.
        lines: the lines on which it stands, from 1.
        anew: the lines that may bind its scope's name to other code, from 1.

    """

    form: str | None
    lines: tuple[int, ...] = ()
    anew: tuple[int, ...] = ()


class Tree:
    """The modules of one sglang, each read and parsed once. Nothing of it is run.

    Attributes:
        sglang: its files.
        says: the version that its version file says, or ``unknown``. A hint for people: dev builds
            and edited checkouts carry numbers that do not tell what they hold.

    """

    def __init__(self, sglang: Sglang) -> None:
        self.sglang = sglang
        self.says = next(filter(None, map(self._version_in, _VERSION_MODULES)), "unknown")
        self._sources: dict[str, Source] = {}
        self._trees: dict[str, ast.Module] = {}
        self._names: dict[str, frozenset[str]] = {}
        self._bindings: dict[str, Bindings] = {}
        self._effects: dict[str, Names] = {}
        self._anew: dict[Target, Mapping[int, str]] = {}
        self._stands: dict[str, Stands] = {}

    def _version_in(self, module: str) -> str | None:
        try:
            raw = self.sglang.raw(module)
        except OSError:
            return None
        match = _VERSION.search((raw or b"").decode("utf-8", "replace"))
        return match[1] if match else None

    @property
    def version(self) -> Version | None:
        """The version as PEP 440 reads it, if it does. Not to be relied on."""
        try:
            return Version(self.says)
        except InvalidVersion:
            return None

    def source(self, module: str) -> Source | None:
        """Return a module's source; ``None`` if sglang has no such module.

        Raises:
            SourceError: the file cannot be read or decoded, or there is only byte code.

        """
        if module not in self._sources:
            file = self.sglang.file_of(module)
            try:
                raw = self.sglang.raw(module)
            except OSError as error:
                raise SourceError(f"{file} cannot be read: {error.strerror or error}") from error
            if raw is None and file.with_suffix(".pyc").exists():
                raise SourceError(f"{file.with_suffix('.pyc')} is byte code without its source")
            if raw is None:
                return None
            self._sources[module] = Source.from_bytes(file, raw)
        return self._sources[module]

    def tree(self, module: str) -> ast.Module | None:
        """Parse a module once; ``None`` if sglang has no such module. Not to be changed.

        Raises:
            SourceError: the module cannot be read or parsed.

        """
        source = self.source(module)
        if source is not None and module not in self._trees:
            self._trees[module] = parse(source)
        return self._trees.get(module)

    def fingerprint(self, target: Target) -> str | None:
        """Return the fingerprint of ``target``; ``None`` if it is absent."""
        tree = self.tree(target.module)
        scope = None if tree is None else find_scope(tree, target.scope)
        return None if scope is None else fingerprint(scope)

    def stands(self, clause: Clause) -> Stands:
        """Find a clause, and work out its form.

        Raises:
            SourceError: the module cannot be read or parsed, or the scope is defined twice.

        """
        if clause.key not in self._stands:
            try:
                found = self._find(clause)
                anew = self._bound_anew(clause.target) if found.form is not None else {}
            except RecursionError as error:
                file = self.sglang.file_of(clause.target.module)
                raise SourceError(f"{file}: the code is nested too deeply") from error
            if anew:
                form = short_digest("\n".join([str(found.form), *anew.values()]).encode())
                found = replace(found, form=form, anew=tuple(anew))
            self._stands[clause.key] = found
        return self._stands[clause.key]

    def _bound_anew(self, target: Target) -> Mapping[int, str]:
        """Return what may bind the scope's name to other code, by lines."""
        module, scope = target.module, target.scope
        if target not in self._anew:
            tree, self._anew[target] = self.tree(module), {}
            if tree is not None and scope and find_scope(tree, scope):
                try:
                    names = self._effects.get(module) or Names(module, tree)
                    self._effects[module] = names
                    self._anew[target] = dict(names.bound_anew(scope))
                except RecursionError as error:
                    raise SourceError("the code is nested too deeply to be searched") from error
        return self._anew[target]

    def _find(self, clause: Clause) -> Stands:
        module = clause.target.module
        tree = self.tree(module)
        scope = find_scope(tree, clause.target.scope) if tree and clause.target.scope else tree
        if clause.unmentioned:
            # A function that is not there mentions nothing, and proves nothing.
            gone = scope is None and bool(clause.target.scope)
            there = gone or (scope is not None and self._mentions(scope, clause))
            return Stands(None if there else "unmentioned")
        if tree is None or scope is None:
            return Stands(None)
        if isinstance(scope, ast.Module):
            return Stands(bindings_for(self._bound(module, tree), parsed(clause.text)).digest)
        if not clause.find:
            return Stands("there", (scope.lineno,))
        anchors = anchors_in(scope, parsed(clause.find))
        lines = tuple(anchor.first.lineno for anchor in anchors)
        if len(anchors) != 1:
            return Stands(None, lines)
        bound = self._bound(module, tree) if clause.deep else {}
        return Stands(form_of(bound, scope, anchors[0], clause).digest, lines)

    def _mentions(self, scope: ast.AST, clause: Clause) -> bool:
        target = str(clause.target)
        if target not in self._names:
            self._names[target] = names_in(scope)
        return not self._names[target].isdisjoint(clause.unmentioned)

    def _bound(self, module: str, tree: ast.Module) -> Bindings:
        if module not in self._bindings:
            self._bindings[module] = module_bindings(tree)
        return self._bindings[module]
