"""FlashInfer's own source, to run the parts of it that need no GPU.

FlashInfer cannot be imported without CUDA. Its wheels are pure Python, so that they can be read:
`ensure_source` downloads one, once, and keeps `flashinfer/comm`.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from rig.environment import RigError, _Builder, _interpreter, _lock, _print


if TYPE_CHECKING:
    from rig.environment import Environment


# What 0.5.10.post1 pins, and the first that takes the ranks from a process group.
PINNED = "0.6.7.post3"
WITH_GROUP = "0.6.11.post1"


def ensure_source(environment: Environment, version: str) -> Path:
    """Return the folder that holds `flashinfer/comm` of this version."""
    folder = environment.root / "flashinfer" / version
    with _lock(environment.root / "lock", _print) as lock:
        if not folder.is_dir():
            _download(_Builder(environment, _interpreter()[0], _print, lock), version, folder)
    return folder


def _download(builder: _Builder, version: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wanted = f"flashinfer-python=={version}"
        builder._run(
            f"download {wanted}",
            str(builder.environment.python), "-m", "pip", "download",
            "--disable-pip-version-check", "--no-input", "--no-deps",
            "--only-binary=:all:", "--dest", scratch, wanted,
        )  # fmt: skip
        wheels = list(Path(scratch).glob("*.whl"))
        if len(wheels) != 1:
            raise RigError(f"{wanted}: pip left {len(wheels)} wheels")
        unpacked = Path(scratch) / "unpacked"
        with zipfile.ZipFile(wheels[0]) as archive:
            for name in archive.namelist():
                if name.startswith("flashinfer/comm/") and name.endswith(".py"):
                    archive.extract(name, unpacked)
        shutil.move(unpacked, folder)
