"""On PYTHONPATH of every server: its start-up module, and what stands in for sgl_kernel."""

from __future__ import annotations
