"""The plan as unified diffs of the installed tree, for ``patch -p1`` and ``git apply``."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from sglang_commfix.files import splice


if TYPE_CHECKING:
    from collections.abc import Iterator

    from sglang_commfix.run.plan import Plan


def unified_diff(plan: Plan) -> bytes:
    """Return the diff between the installed files and the text that importing them would run.

    Paths are relative to the folder that contains the ``sglang`` package. Bytes, because files
    keep their own encoding and line ends.
    """
    return b"".join(
        line
        for name, module in plan.modules.items()
        for line in _file_diff(_path(plan, name), module.before, module.after)
    )


def one_by_one(plan: Plan) -> Iterator[tuple[str, bytes]]:
    """Yield for each applied patch its id and its own diff, to be made after those before it."""
    texts = {name: module.before for name, module in plan.modules.items()}
    made = []
    for patch in plan.having("apply"):
        made += patch["splices"]
        diff = b""
        for name in dict.fromkeys(one["module"] for one in patch["splices"]):
            own = [one for one in made if one["module"] == name]
            after = splice(plan.modules[name].before, own)
            diff += b"".join(_file_diff(_path(plan, name), texts[name], after))
            texts[name] = after
        yield patch["id"], diff


def _path(plan: Plan, module: str) -> bytes:
    return plan.modules[module].path.relative_to(plan.sglang.path.parent).as_posix().encode()


def _file_diff(name: bytes, before: bytes, after: bytes) -> Iterator[bytes]:
    diff = difflib.diff_bytes(
        difflib.unified_diff,
        _by_line_feed(before),
        _by_line_feed(after),
        b"a/" + name,
        b"b/" + name,
        lineterm=b"\n",
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
