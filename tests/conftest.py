"""Fixtures for every folder of tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake import FAULTY, FILE, Upstream, write_sglang

from sglang_commfix.engine.register import Register


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A folder with an sglang that has the fault which the fake register fixes."""
    return write_sglang(tmp_path / "site", {FILE: FAULTY})


@pytest.fixture
def register(tmp_path: Path, upstream: Upstream) -> Register:
    return upstream.register(tmp_path / "patches")
