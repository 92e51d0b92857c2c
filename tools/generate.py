"""Bring all that is generated up to date, in its order: fingerprints, locks, pages.

Run by whoever changes an entry::

    python tools/generate.py            # the releases that are known
    python tools/generate.py --new      # asks the package index for new releases of sglang, too
    python tools/generate.py --check    # changes nothing, and fails if anything is not current
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


# Each reads what those before it have written.
TOOLS = ("fingerprints", "locks", "reduction_contract", "patch_table", "server_table", "pages")


def main() -> int:
    """Run the tools one after another; stop at the first that fails, unless only checking."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if not current")
    parser.add_argument("--new", action="store_true", help="look for new releases of sglang")
    arguments = parser.parse_args()
    failed = 0
    for tool in TOOLS:
        options = ["--check"] if arguments.check else []
        if tool == "fingerprints" and not arguments.new:
            options.append("--offline")
        command = [sys.executable, str(Path(__file__).with_name(f"{tool}.py")), *options]
        failed |= subprocess.run(command, check=False).returncode
        if failed and not arguments.check:
            break
    return failed


if __name__ == "__main__":
    sys.exit(main())
