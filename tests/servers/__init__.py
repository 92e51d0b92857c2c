"""End-to-end tests: real sglang servers, asked over HTTP or looked into by the rig's probes."""

from __future__ import annotations
