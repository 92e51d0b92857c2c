"""An sglang tree as the engine sees it: the source and the syntax of its modules."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from sglang_commfix.engine.errors import SourceError
from sglang_commfix.engine.fingerprint import find_scope, fingerprint, parse
from sglang_commfix.engine.source import Source


if TYPE_CHECKING:
    import ast

    from sglang_commfix.engine.register import Target
    from sglang_commfix.files import Sglang

# The first in 0.5.7 and later, the second before. Each assigns a literal.
_VERSION_MODULES = ("sglang._version", "sglang.version")
_VERSION = re.compile(
    r"""^__version__\s*(?::[^=]+)?=\s*(?:version\s*=\s*)?["']([^"']+)["']""", re.M
)


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
