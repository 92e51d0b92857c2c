"""What the entries of the register say about themselves: files in `tests/patches/<id>/`."""

from __future__ import annotations

import runpy
from typing import TYPE_CHECKING, Any

from rig.environment import HERE


if TYPE_CHECKING:
    from collections.abc import Iterator


FOLDER = HERE.parent / "patches"


def declared(file: str, name: str) -> Iterator[tuple[str, Any]]:
    """The id of each entry that has such a file, and what it calls by this name there."""
    for path in sorted(FOLDER.glob(f"*/{file}")):
        yield path.parent.name, runpy.run_path(str(path))[name]
