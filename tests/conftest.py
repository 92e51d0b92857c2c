"""Fixtures for every folder of tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake import FAULTY, FILE, Upstream, write_sglang
from fingerprints import fetch, wanted_files

from sglang_commfix.register import Register, load


RELEASES: list[str] = json.loads(
    (Path(__file__).parent.parent / "patches" / "releases.json").read_text()
)


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


@pytest.fixture(scope="session")
def real_register() -> Register:
    return load()


def released(release: str) -> Path:
    """The folder with the files that the register looks at, of a published release."""
    return fetch(release, wanted_files(load().patches))
