"""Write the register as tables: ``patches/README.md`` and ``docs/releases.md``.

``python tools/patch_table.py`` writes them, ``--check`` fails if they are not current.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from generated import bring_up_to_date

from sglang_commfix.engine.register import load_folder


if TYPE_CHECKING:
    from sglang_commfix.engine.register import Patch, Register

_HEAD = """\
# The register

Made by `python tools/patch_table.py` from the data in this folder; a test keeps it current.

Each patch is a folder: `patch.toml` holds the entry and its edits, longer added code stands beside
it as a Python file, `fingerprints.json` says what every published release holds at the places
concerned, and `locks.json` what is decided there, with the text that will run. `releases.json`
lists those releases, `keys.json` the digest by which a server finds their locks.
[CONTRIBUTING.md](../CONTRIBUTING.md) says how to add one.

| patch | upstream | kind | sglang | fixed in | edits | decided by |
|---|---|---|---|---|---|---|
"""


_RELEASES_HEAD = """\
# Releases and patches

Made by `python tools/patch_table.py`; a test compares every cell with the decision on the source of
the published release.

**apply**: the release has the fault, or lacks what the patch brings. *fixed*: it has upstream's
version. *faulty*: it has upstream's version, with a fault that the patch named beside it repairs.
*sound*: it has the code, but not the fault. An empty cell: what the patch is for is not there.

"""


def render_releases(register: Register) -> str:
    """Return the text of ``docs/releases.md``: a row a release, a column a patch."""
    names = [f"[{p.id}](../patches/{p.id}/patch.toml)" for p in register.patches]
    rows = [
        ["sglang", *names],
        ["---"] * (len(names) + 1),
        *(
            [release, *(state(register, patch, release) for patch in register.patches)]
            for release in register.patches[0].fingerprints.releases
        ),
    ]
    return _RELEASES_HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def state(register: Register, patch: Patch, release: str) -> str:
    """Return what ``docs/releases.md`` says of a patch in a release."""
    if patch.affected.contains(release, True):
        return "**apply**"
    index = patch.fingerprints.releases.index(release)
    edited = {edit.target for edit in patch.edits if edit.target.scope}
    if all(patch.fingerprints.targets[target][index] is None for target in edited):
        return ""
    if not patch.is_fixed_in(release):
        return "*sound*"
    repairs = [p.id for p in register.repairs_of(patch) if release in p.affected_releases]
    return f"*faulty*: {', '.join(repairs)}" if repairs else "*fixed*"


def render(register: Register) -> str:
    """Return the text of ``patches/README.md``."""
    rows = "".join(_row(patch) for patch in register.patches)
    details = "".join(f"\n**{patch.id}**: {patch.title}.\n" for patch in register.patches)
    return f"{_HEAD}{rows}{details}"


def _row(patch: Patch) -> str:
    affected = patch.affected_releases
    pr = next((link for link in patch.links if link.endswith(f"/pull/{patch.pr}")), None)
    cells = [
        f"[{patch.id}]({patch.id}/patch.toml)",
        f"[#{patch.pr}]({pr})" if pr else "none",
        patch.kind,
        f"{patch.fingerprints.spans(affected)} ({len(affected)} in all)",
        patch.fixed_in or "no release yet",
        _cell(dict.fromkeys(str(edit.target) for edit in patch.edits)),
        _cell(dict.fromkeys(str(one.target) for one in (*patch.faulty, *patch.sound))),
    ]
    return f"| {' | '.join(cells)} |\n"


def _cell(names: dict[str, None]) -> str:
    return "<br>".join(f"`{name}`" for name in names)


def main() -> int:
    """Write or check the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if not current")
    arguments = parser.parse_args()
    root = Path(__file__).resolve().parent.parent
    register = load_folder(root / "patches")
    texts = {
        root / "patches" / "README.md": render(register),
        root / "docs" / "releases.md": render_releases(register),
    }
    return bring_up_to_date(texts, check=arguments.check)


if __name__ == "__main__":
    sys.exit(main())
