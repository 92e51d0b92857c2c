"""Real sglang servers on a machine without a GPU: a private environment, tiny models, a server.

The package itself needs nothing but the standard library, so that it runs on a bare Python. What
sglang needs is installed into a private virtual environment, and only the server's own processes
run there.
"""

from __future__ import annotations

import sys
from pathlib import Path


# The tools are scripts that find each other by their folder.
sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
