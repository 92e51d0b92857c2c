"""The installed sglang, as files: where it is, what it calls itself, what its modules hold.

Nothing of sglang is imported or run here.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

import sglang_commfix
from sglang_commfix.errors import SglangNotFoundError, SourceError
from sglang_commfix.fingerprint import find_scope, fingerprint, parse
from sglang_commfix.source import Source


if TYPE_CHECKING:
    import ast
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from sglang_commfix.register import Target

# sglang/_version.py (0.5.7 and later) and sglang/version.py (before) assign a literal.
_VERSION = re.compile(
    r"""^__version__\s*(?::[^=]+)?=\s*(?:version\s*=\s*)?["']([^"']+)["']""", re.M
)
UNKNOWN_VERSION = "unknown"


@dataclass
class Sglang:
    """An sglang package on disk.

    Attributes:
        path: the package's folder, ``…/site-packages/sglang``.
        version: what its version file says, or :data:`UNKNOWN_VERSION`. A hint for messages: dev
            builds and edited checkouts carry numbers that do not tell what they hold.

    """

    path: Path
    version: str
    _sources: dict[str, Source | None] = field(default_factory=dict, repr=False)
    _trees: dict[str, ast.Module] = field(default_factory=dict, repr=False)

    @classmethod
    def at(cls, path: Path) -> Sglang:
        """Describe the package in folder ``path``."""
        return cls(path, _read_version(path))

    @property
    def root(self) -> Path:
        """The folder that holds the package."""
        return self.path.parent

    @property
    def parsed_version(self) -> Version | None:
        """The version as PEP 440 reads it, if it does."""
        try:
            return Version(self.version)
        except InvalidVersion:
            return None

    def file_of(self, module: str) -> Path:
        """Return the file that ``module`` (``sglang.srt.…``) is read from, existing or not."""
        base = self.root.joinpath(*module.split("."))
        package = base / "__init__.py"
        return package if package.is_file() else base.with_suffix(".py")

    def source(self, module: str) -> Source | None:
        """Read a module's source once; ``None`` if sglang has no such module.

        Raises:
            SourceError: the file cannot be read or decoded, or there is only byte code.

        """
        if module not in self._sources:
            file = self.file_of(module)
            if not file.exists() and file.with_suffix(".pyc").exists():
                raise SourceError(f"{file.with_suffix('.pyc')} is byte code without its source")
            self._sources[module] = Source.read(file) if file.exists() else None
        return self._sources[module]

    def tree(self, module: str) -> ast.Module | None:
        """Parse a module once; ``None`` if sglang has no such module. Not to be changed."""
        source = self.source(module)
        if source is not None and module not in self._trees:
            self._trees[module] = parse(source)
        return self._trees.get(module)

    def fingerprint(self, target: Target) -> str | None:
        """Return the fingerprint of ``target``; ``None`` if it is absent."""
        tree = self.tree(target.module)
        scope = None if tree is None else find_scope(tree, target.scope)
        return None if scope is None else fingerprint(scope)


def _read_version(path: Path) -> str:
    for name in ("_version.py", "version.py"):
        try:
            match = _VERSION.search((path / name).read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if match:
            return match[1]
    return UNKNOWN_VERSION


def find_elsewhere(
    name: str,
    path: Sequence[str] | None,
    target: ModuleType | None,
    skip: Sequence[object],
) -> ModuleSpec | None:
    """Ask every finder on ``sys.meta_path`` but those in ``skip``, in order."""
    for finder in list(sys.meta_path):
        find_spec = getattr(finder, "find_spec", None)
        if find_spec is None or any(finder is own for own in skip):
            continue
        spec: ModuleSpec | None = find_spec(name, path, target)
        if spec is not None:
            return spec
    return None


def find_package() -> ModuleSpec | None:
    """Find the sglang that is imported, or would be; nothing is imported, no session started."""
    module = sys.modules.get("sglang")
    spec = module.__spec__ if module else None
    return spec or find_elsewhere("sglang", None, None, skip=[sglang_commfix.FINDER])


def locate(folder: Path | None = None) -> Sglang:
    """Find sglang: in ``folder``, which contains the package, or where Python would import it.

    Raises:
        SglangNotFoundError: there is none, or what is there is not sglang's runtime.

    """
    if folder is not None:
        return _in_folder(folder)
    spec = find_package()
    if spec is None:
        raise SglangNotFoundError(
            f"no sglang is installed for {sys.executable}; --sglang-path names another folder"
        )
    return from_spec(spec)


def from_spec(spec: ModuleSpec) -> Sglang:
    """Describe the package that an import of ``spec`` would run."""
    for location in spec.submodule_search_locations or ():
        path = Path(location)
        if (path / "srt").is_dir():
            return Sglang.at(path)
    found = spec.origin or ", ".join(spec.submodule_search_locations or ()) or "a built-in module"
    raise SglangNotFoundError(
        f"what Python imports as sglang is {found}, which is not sglang's runtime (it has no srt/ "
        "folder): move away what has taken sglang's name"
    )


def _in_folder(folder: Path) -> Sglang:
    path = folder.resolve()
    for candidate in (path / "sglang", path / "python" / "sglang", path):
        if candidate.name == "sglang" and (candidate / "srt").is_dir():
            return Sglang.at(candidate)
    raise SglangNotFoundError(f"{path} contains no sglang package (sglang/srt)")


def shadowed_by() -> Path | None:
    """Return a folder ``./sglang`` that ``python -m sglang…`` would run from here, if it is one.

    ``python -m`` searches the current folder first; a console script does not.
    """
    folder = Path.cwd()
    spec = PathFinder.find_spec("sglang", [str(folder)])
    if spec is None or spec.origin is None:
        return None
    return folder / "sglang"
