"""New text in the place of bytes, and the digests that say what it is made for."""

from __future__ import annotations

import hashlib

from sglang_commfix.errors import LockError


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from sglang_commfix.lock import Splice

# What comes first where two splices meet: text behind a statement, text before the next, the next.
_RANKS = {"after": 0, "before": 1, "replace": 2, "append": 3}


def short_digest(data: bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()[:16]


def splice(raw: bytes, splices: Iterable[Splice]) -> bytes:
    """Return ``raw`` with ``splices`` made, those at one place in the order given."""
    parts, done = [], 0
    for one in sorted(splices, key=_place):
        start, stop = one["start"], one["stop"]
        if (
            not done <= start <= stop <= len(raw)
            or short_digest(raw[start:stop]) != one["replaces"]
        ):
            raise LockError(f"{one['module']}: the lock does not fit its bytes {start} to {stop}")
        parts += [raw[done:start], "".join(one["text"]).encode(one["encoding"])]
        done = stop
    return b"".join([*parts, raw[done:]])


def _place(one: Splice) -> tuple[int, int]:
    operation = "replace" if one["start"] < one["stop"] else one["operation"]
    return one["start"], _RANKS[operation]
