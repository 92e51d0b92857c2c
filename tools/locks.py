"""Write what ships as locks: for each entry, what is decided about every published release.

Run by a maintainer when a patch or a release is added, after ``tools/fingerprints.py``::

    python tools/locks.py            # writes patches/keys.json and patches/*/locks.json
    python tools/locks.py --check    # change nothing, fail if the data is not current
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cache
from typing import TYPE_CHECKING

from fingerprints import PATCHES, wanted_files
from generated import bring_up_to_date, each_of, read_register
from wheels import fetch_all

from sglang_commfix.engine import shipped
from sglang_commfix.engine.make_lock import make_lock
from sglang_commfix.engine.tree import Tree
from sglang_commfix.files import KEY, Sglang, short_digest


if TYPE_CHECKING:
    from pathlib import Path

    from sglang_commfix.engine.register import Register
    from sglang_commfix.lock import Lock


def main() -> int:
    """Bring ``patches/keys.json`` and every ``locks.json`` up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if not current")
    arguments = parser.parse_args()
    register = _register()
    keys, locks = {}, {}
    releases = register.patches[0].fingerprints.releases
    folders = fetch_all(releases, wanted_files(register.patches))
    for release, (key, lock) in each_of(folders, decided):
        keys[release], locks[release] = key, lock
    outcome: dict[Path, str] = {PATCHES / "keys.json": json.dumps(keys, indent=2) + "\n"}
    for number, patch in enumerate(register.patches):
        decisions = {release: lock["decisions"][number] for release, lock in locks.items()}
        outcome[PATCHES / patch.id / "locks.json"] = shipped.write(patch, decisions)
    refuse_doubt(locks)
    return bring_up_to_date(outcome, check=arguments.check)


@cache
def _register() -> Register:
    return read_register(PATCHES)


def decided(folder: Path) -> tuple[str, Lock]:
    """Return the digest of one release's key file, and its lock."""
    sglang = Sglang(folder / "sglang")
    return short_digest(sglang.raw(KEY) or b""), make_lock(_register(), Tree(sglang))


def refuse_doubt(locks: dict[str, Lock]) -> None:
    """End the run if anything is refused in a published release: no such lock may ship."""
    doubts = [
        f"{release}: {decision['id']} is refused: {decision['reason']}"
        for release, lock in locks.items()
        for decision in lock["decisions"]
        if decision["decision"] == "refused"
    ]
    if doubts:
        wanted = (
            "What is edited has to stand in every affected release, and in every other one a"
            " [[sound]] clause that stands in none of the affected (CONTRIBUTING.md)"
        )
        raise SystemExit("\n".join([*doubts, wanted]))


if __name__ == "__main__":
    sys.exit(main())
