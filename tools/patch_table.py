"""Write ``patches/README.md``: the register as a table, made from the data.

``python tools/patch_table.py`` writes it, ``--check`` fails if it is not current.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sglang_commfix.register import load_folder


if TYPE_CHECKING:
    from sglang_commfix.register import Patch, Register

_HEAD = """\
# The register

Made by `python tools/patch_table.py` from the data in this folder; a test keeps it current.

Each patch is a folder: `patch.toml` holds the entry and its edits, longer added code stands beside
it as a Python file, `fingerprints.json` says what every published release holds at the places
concerned. `releases.json` lists those releases. [CONTRIBUTING.md](../CONTRIBUTING.md) says how to
add one.

| patch | upstream | kind | sglang | fixed in | edits | relies on |
|---|---|---|---|---|---|---|
"""


def render(register: Register) -> str:
    """Return the text of ``patches/README.md``."""
    rows = "".join(_row(patch) for patch in register.patches)
    details = "".join(f"\n**{patch.id}**: {patch.title}.\n" for patch in register.patches)
    return f"{_HEAD}{rows}{details}"


def _row(patch: Patch) -> str:
    affected = [r for r in patch.fingerprints.releases if patch.affected.contains(r, True)]
    pr = next((link for link in patch.links if link.endswith(f"/pull/{patch.pr}")), None)
    cells = [
        f"[{patch.id}]({patch.id}/patch.toml)",
        f"[#{patch.pr}]({pr})" if pr else "none",
        patch.kind,
        f"{patch.fingerprints.spans(affected)} ({len(affected)} in all)",
        patch.fixed_in,
        _cell(dict.fromkeys(str(edit.target) for edit in patch.edits)),
        _cell(dict.fromkeys(map(str, patch.witnesses))),
    ]
    return f"| {' | '.join(cells)} |\n"


def _cell(names: dict[str, None]) -> str:
    return "<br>".join(f"`{name}`" for name in names)


def main() -> int:
    """Write or check the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if not current")
    arguments = parser.parse_args()
    folder = Path(__file__).resolve().parent.parent / "patches"
    file = folder / "README.md"
    text = render(load_folder(folder))
    if arguments.check:
        return 0 if file.is_file() and file.read_text(encoding="utf-8") == text else 1
    file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
