"""The installed sglang, as files. Nothing of it is imported, run or parsed here."""

import hashlib
import re
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path

from sglang_commfix import FINDER
from sglang_commfix.errors import SglangNotFoundError


# Most releases differ in this file. Its digest is the name of the shipped file that has its locks.
KEY = "sglang.srt.model_executor.model_runner"
# sglang/_version.py (0.5.7 and later) and sglang/version.py (before) assign a literal.
_VERSION = re.compile(r"""^__version__\s*(?::[^=]+)?=\s*(?:version\s*=\s*)?["']([^"']+)""", re.M)


class Sglang:
    """The sglang package in a folder (``…/site-packages/sglang``), each of its files read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw: dict[str, bytes | None] = {}

    @property
    def version(self) -> str:
        """What its version file says, or ``unknown``: a hint for people."""
        files = [self.path / name for name in ("_version.py", "version.py")]
        texts = [file.read_text("utf-8", "replace") for file in files if file.is_file()]
        return next((match[1] for match in map(_VERSION.search, texts) if match), "unknown")

    def file_of(self, module: str) -> Path:
        """Return the file that ``module`` (``sglang.srt.…``) is read from, existing or not."""
        base = self.path.parent.joinpath(*module.split("."))
        package = base / "__init__.py"
        return package if package.is_file() else base.with_suffix(".py")

    def raw(self, module: str) -> bytes | None:
        """Return the bytes of a module's file; ``None``: no such module. May raise ``OSError``."""
        if module not in self._raw:
            file = self.file_of(module)
            if not file.exists() and file.with_suffix(".pyc").exists():
                raise OSError(f"there is only {file.stem}.pyc, byte code without its source")
            self._raw[module] = file.read_bytes() if file.exists() else None
        return self._raw[module]

    def differing(self, modules: Mapping[str, str | None]) -> list[Path]:
        """Return the files whose SHA-256 is another than ``modules`` say (``None``: no file)."""
        return [
            self.file_of(name) for name, digest in modules.items() if self.digest(name) != digest
        ]

    def digest(self, module: str) -> str | None:
        """Return the SHA-256 of a module's file; ``None``: no such module."""
        try:
            raw = self.raw(module)
        except OSError:
            return "unreadable"
        return None if raw is None else hashlib.sha256(raw).hexdigest()


def find_elsewhere(
    name: str, path: object, target: object, skip: list[object]
) -> ModuleSpec | None:
    """Ask every finder on ``sys.meta_path`` but those in ``skip``, in order."""
    for finder in list(sys.meta_path):
        find_spec = getattr(finder, "find_spec", None)
        if find_spec is not None and not any(finder is own for own in skip):
            spec: ModuleSpec | None = find_spec(name, path, target)
            if spec is not None:
                return spec
    return None


def find_sglang() -> Sglang | None:
    """Find the sglang that is imported, or would be, if any. Nothing is imported for it."""
    module = sys.modules.get("sglang")
    spec = module.__spec__ if module else None
    spec = spec or find_elsewhere("sglang", None, None, skip=[FINDER])
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    for folder in folders:
        if (folder / "srt").is_dir():
            return Sglang(folder)
    found = spec.origin or ", ".join(map(str, folders)) or "a built-in module"
    raise SglangNotFoundError(
        f"what Python imports as sglang is {found}, which is not sglang's runtime (it has no srt/ "
        "folder): move away what has taken sglang's name"
    )
