"""The files of an installed sglang: where they are, their digests, new text in their place."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang_commfix import FINDER
from sglang_commfix.errors import LockError, SglangNotFoundError


if TYPE_CHECKING:
    from sglang_commfix.lock import Splice

# Most releases differ in this file. Its digest is the name of the shipped file that has its locks.
KEY = "sglang.srt.model_executor.model_runner"


class Sglang:
    """The sglang package in a folder (``…/site-packages/sglang``), each of its files read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw: dict[str, bytes | None] = {}
        self._digests: dict[str, str | None] = {}

    def file_of(self, module: str) -> Path:
        """Return the file that ``module`` (``sglang.srt.…``) is read from, existing or not."""
        package = self.path.parent.joinpath(*module.split("."), "__init__.py")
        return package if package.is_file() else package.parent.with_suffix(".py")

    def raw(self, module: str) -> bytes | None:
        """Return the bytes of a module's file; ``None``: no such module. May raise ``OSError``."""
        if module not in self._raw:
            file = self.file_of(module)
            self._raw[module] = read(file) if file.exists() else None
        return self._raw[module]

    def digest(self, module: str) -> str | None:
        """Return the SHA-256 of a module's file; ``None``: no such module."""
        if module not in self._digests:
            try:
                raw = self.raw(module)
                self._digests[module] = None if raw is None else hashlib.sha256(raw).hexdigest()
            except OSError:
                self._digests[module] = "unreadable"
        return self._digests[module]

    def differing(self, modules: Mapping[str, str | None]) -> list[Path]:
        """Return the files whose digest is another than ``modules`` say."""
        return [self.file_of(name) for name in modules if self.digest(name) != modules[name]]


def read(file: Path) -> bytes:
    """Return the bytes of ``file``; raise ``OSError`` for a FIFO, and for what takes too long."""
    if file.stat().st_size > 2 << 20 or not file.is_file():
        raise OSError("it is no regular file of at most 2 MB")
    return file.read_bytes()


def short_digest(data: bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()[:16]


def splice(raw: bytes, splices: Iterable[Splice]) -> bytes:
    """Return ``raw`` with ``splices`` made, those at one place in the order given."""
    parts, done = [], 0
    for one in sorted(splices, key=lambda one: (one["start"], one["rank"])):
        start, stop, replaces = one["start"], one["stop"], one["replaces"]
        if not done <= start <= stop <= len(raw) or short_digest(raw[start:stop]) != replaces:
            raise LockError(f"{one['module']}: the lock does not fit its bytes {start} to {stop}")
        parts += [raw[done:start], "".join(one["text"]).encode(one["encoding"])]
        done = stop
    return b"".join([*parts, raw[done:]])


def ask(finders: list[Any], name: str, path: object, target: object) -> ModuleSpec | None:
    """Return the first spec that one of ``finders`` has."""
    specs = (f.find_spec(name, path, target) for f in finders if hasattr(f, "find_spec"))
    return next((spec for spec in specs if spec is not None), None)


def find_sglang() -> Sglang | None:
    """Find the sglang that is imported, or would be, if any. Nothing is imported for it."""
    spec = getattr(sys.modules.get("sglang"), "__spec__", None)
    spec = spec or ask([f for f in sys.meta_path if f is not FINDER], "sglang", None, None)
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if path := next((folder for folder in folders if (folder / "srt").is_dir()), None):
        return Sglang(path)
    from sglang_commfix import wrong

    raise SglangNotFoundError(wrong.with_package(spec, folders))
