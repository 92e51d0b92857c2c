"""The plan as a unified diff of the installed tree, for ``patch -p1`` and ``git apply``."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Iterator

    from sglang_commfix.plan import Plan, Rewritten


def unified_diff(plan: Plan) -> bytes:
    """Return the diff between the installed files and the text that importing them would run.

    Paths are relative to the folder that contains the ``sglang`` package. Bytes, because files
    keep their own encoding and line ends.
    """
    return b"".join(line for module in plan.modules.values() for line in _file_diff(plan, module))


def _file_diff(plan: Plan, module: Rewritten) -> Iterator[bytes]:
    name = module.before.path.relative_to(plan.sglang.root).as_posix().encode()
    before, after = _by_line_feed(module.before.raw), _by_line_feed(module.after.raw)
    diff = difflib.diff_bytes(
        difflib.unified_diff, before, after, b"a/" + name, b"b/" + name, lineterm=b"\n"
    )
    for line in diff:
        yield line
        if not line.endswith(b"\n"):
            yield b"\n\\ No newline at end of file\n"


def _by_line_feed(raw: bytes) -> list[bytes]:
    """Split as ``patch`` does, at line feeds alone."""
    lines = raw.split(b"\n")
    last = lines.pop()
    return [line + b"\n" for line in lines] + ([last] if last else [])
