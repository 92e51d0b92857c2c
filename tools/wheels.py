"""The published releases of sglang, downloaded once: one cache for tools, tests and the rig.

Wheels come from the package index with ``pip download``. What is wanted of each is kept, unpacked,
in ``$XDG_CACHE_HOME/sglang-commfix/releases``. Only the standard library is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Some wheels are built for one Python. Of those the source is the same; what is compiled is not.
PYTHONS = ("3.11", "3.12", "3.10", "3.13")


class DownloadError(SystemExit):
    """A wheel cannot be had; the message is what pip said."""


def cache_folder() -> Path:
    """Return the folder that holds the releases' files."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sglang-commfix" / "releases"


def fetch(release: str, files: Iterable[str], *, python: str | None = None) -> Path:
    """Return the folder with ``files`` of sglang ``release``, downloading its wheel if need be.

    A name with a slash at its end stands for all that is below that folder. Whoever runs the files
    names the ``python`` that does, such as ``3.11``: its wheel is taken.
    """
    folder = cache_folder() / release
    stamp = folder / ".complete.json"
    there = json.loads(stamp.read_text(encoding="utf-8")) if stamp.is_file() else []
    files = list(files)
    if _are_kept(files, python, there):
        return folder
    wanted = [name if python is None else f"{name} for {python}" for name in files]
    pythons = PYTHONS if python is None else (python,)
    with tempfile.TemporaryDirectory() as scratch:
        unpack(download(f"sglang=={release}", Path(scratch), pythons), folder, files)
    (folder / "sglang" / "srt").mkdir(parents=True, exist_ok=True)
    stamp.write_text(json.dumps(sorted({*there, *wanted})), encoding="utf-8")
    return folder


def _are_kept(names: Iterable[str], python: str | None, there: Iterable[str]) -> bool:
    """Tell whether each name is among those there, or below a folder that is."""
    entries = (one.partition(" for ") for one in there)
    kept = {name for name, _, built_for in entries if python in (None, built_for)}
    folders = tuple(name for name in kept if name.endswith("/"))
    return all(name in kept or name.startswith(folders) for name in names)


def fetch_all(releases: Sequence[str], files: Sequence[str]) -> dict[str, Path]:
    """Fetch ``files`` of several releases, a few wheels at a time."""
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(releases, pool.map(partial(fetch, files=files), releases), strict=True))


def download(wanted: str, folder: Path, pythons: Sequence[str] = PYTHONS) -> Path:
    """Download the wheel of a requirement for the first of ``pythons`` that it is there for."""
    base = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    for python in pythons:
        options = ["--only-binary=:all:", "--python-version", python, "--dest", str(folder)]
        command = [*base, *options, wanted]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        if result.returncode == 0:
            return next(folder.glob("*.whl"))
    raise DownloadError(f"{wanted} cannot be downloaded:\n{result.stderr}")


def unpack(wheel: Path, folder: Path, files: Iterable[str]) -> None:
    """Take ``files`` out of a wheel; a slash at the end of a name as for `fetch`."""
    files = list(files)
    below = tuple(name for name in files if name.endswith("/"))
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.endswith("/") and (name in files or name.startswith(below)):
                _put(folder / name, archive.read(name))


def _put(file: Path, data: bytes) -> None:
    """Write a file at once: another process may read what was there before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(file)
