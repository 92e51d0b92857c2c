"""Real decoder layers on real process groups, on a CPU, against one process in float64.

`LayerProcess` is what a test needs; it runs where there is no torch. Everything from `worker` on
runs in the rig's environment.
"""

from __future__ import annotations
