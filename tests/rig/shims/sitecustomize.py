"""Runs at the start of every Python process of a server: arms the CPU shims and, if asked, probes.

Spawned processes import sglang from scratch, so that what must be in place before sglang's code
runs can only be put there by the interpreter's own start-up.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from pathlib import Path


# Looking for cycles after every 700 new objects is a quarter of what importing sglang takes.
gc.set_threshold(100_000, 20, 100)

# Last, behind site-packages: the rig's own package must be found, and hide nothing.
sys.path.append(str(Path(__file__).resolve().parents[2]))

importlib.import_module("rig.shims.cpu").register()

for _probe in filter(None, os.environ.get("RIG_PROBES", "").split(",")):
    importlib.import_module(f"rig.probes.{_probe}").install()
