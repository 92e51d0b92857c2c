"""What `tests/servers/test_decisions.py` compares for this entry."""

from __future__ import annotations


# By suite: the first release that decides so, later repairs of the same pull request included.
UPSTREAM = {"command_lines": "0.5.13", "scatter_modes": "0.5.13"}
