"""``sglang-commfix export --series``: one diff for each patch, and a script that checks first."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from sglang_commfix.command.diff import one_by_one


if TYPE_CHECKING:
    from pathlib import Path

    from sglang_commfix.run.plan import Plan

_APPLY = """\
#!/bin/sh
# Apply this series to the sglang in DIR, the folder that contains the package.
# Nothing is changed unless every file is the one that the series was made for.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
cd "$1"
(cd "$here" && sha256sum --check --quiet SHA256SUMS)
sha256sum --check --quiet "$here/before.sha256"
while read -r name; do
    patch -p1 --fuzz=0 --no-backup-if-mismatch < "$here/$name"
done < "$here/series"
sha256sum --check --quiet "$here/after.sha256"
"""


def write_series(plan: Plan, folder: Path) -> list[str]:
    """Write the applied patches of ``plan`` into ``folder``; return the names of the diffs.

    ``series`` lists the diffs in order, ``SHA256SUMS`` holds the digests of everything written,
    ``before.sha256`` and ``after.sha256`` those of sglang's files. ``apply DIR`` applies it all.

    Raises:
        OSError: something cannot be written.

    """
    diffs = {
        f"{number:04}-{name}.patch": diff for number, (name, diff) in enumerate(one_by_one(plan), 1)
    }
    root = plan.sglang.path.parent
    before = {
        plan.sglang.file_of(module).relative_to(root).as_posix(): digest
        for patch in plan.having("apply")
        for module, digest in patch["modules"].items()
        if digest is not None
    }
    after = {m.path.relative_to(root).as_posix(): _digest(m.after) for m in plan.modules.values()}
    files = {
        **diffs,
        "series": "".join(f"{name}\n" for name in diffs).encode(),
        "before.sha256": _sums(before),
        "after.sha256": _sums(before | after),
        "apply": _APPLY.encode(),
    }
    sums = {name: _digest(data) for name, data in files.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in {**files, "SHA256SUMS": _sums(sums)}.items():
        (folder / name).write_bytes(data)
    os.chmod(folder / "apply", 0o755)  # noqa: PTH101, S103 - it is a script, for everybody
    return list(diffs)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sums(digests: dict[str, str]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()
