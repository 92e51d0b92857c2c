"""Looks into a server's scheduler processes, for what cannot be seen from outside."""

from __future__ import annotations
