"""Files that tools write: brought up to date, or checked."""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def bring_up_to_date(texts: Mapping[Path, str], *, check: bool) -> int:
    """Write each file whose text is not current, or with ``check`` name it; return the status."""
    stale = [
        file
        for file, text in texts.items()
        if not file.is_file() or file.read_text(encoding="utf-8") != text
    ]
    for file in stale:
        print(f"{'stale' if check else 'written'}: {file}")
        if not check:
            file.write_text(texts[file], encoding="utf-8")
    return 1 if check and stale else 0
