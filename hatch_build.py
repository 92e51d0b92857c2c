"""Put together what a wheel holds beside the package's own code: the register and the locks."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RegisterBuildHook(BuildHookInterface[Any]):
    """Ship the register with a wheel, and its locks as servers read them.

    An editable installation reads the checkout: a copy of ``patches/`` would go stale there, and
    leave its folder behind at uninstallation.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files of ``patches/`` to a wheel, the locks put together."""
        if version == "editable":
            return
        root = Path(self.root)
        sys.path.insert(0, self.root)
        # Where an older version is installed, its start-up hook has imported that one already.
        for name in [name for name in sys.modules if name.partition(".")[0] == "sglang_commfix"]:
            del sys.modules[name]
        from sglang_commfix.engine.register import load_folder
        from sglang_commfix.engine.shipped import put_together

        folder = root / "patches"
        included = {
            str(file): f"sglang_commfix/{file.relative_to(root).as_posix()}"
            for file in folder.rglob("*")
            if file.is_file() and file.name not in {"locks.json", "keys.json"}
        }
        self._scratch = tempfile.TemporaryDirectory()
        for name, data in put_together(load_folder(folder), folder).items():
            file = Path(self._scratch.name, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            included[str(file)] = f"sglang_commfix/{name}"
        build_data["force_include"].update(included)

    def finalize(self, _version: str, _build_data: dict[str, Any], _artifact_path: str) -> None:
        """Remove the files that were made for the wheel."""
        if hasattr(self, "_scratch"):
            self._scratch.cleanup()
