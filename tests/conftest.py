"""Fixtures for every folder of tests."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
from rig.environment import Environment, ensure
from rig.observer import Observer
from rig.releases import RELEASES
from rig.stand_in import FAULTY, FILE, Upstream, write_sglang
from xdist.scheduler import LoadFileScheduling

from sglang_commfix.engine.register import Register


# What a test needs because of the folder that it is in.
MARKED = {
    "docs": "one_python",
    "hook": "processes",
    "patches": "one_python",
    "rig_tests": "one_python",
}


# Files whose tests ask for the same servers. With `--dist loadfile` one process has them all, and
# starts each server once.
SHARED = {
    "tests/docs/test_blocks.py": "DP attention of 0.5.11",
    "tests/patches/19918-dummy-run-alignment/test_servers.py": "dense layers that are not split",
    "tests/patches/19918-scattered-mlp-fusion/test_servers.py": "dense layers that are not split",
    "tests/patches/24785-sum-len-contract/test_servers.py": "DP attention of 0.5.11",
    "tests/servers/test_embedding.py": "DP attention of 0.5.11",
}


class ByServers(LoadFileScheduling):
    """Hands out the tests of a file together, and those of files that share servers."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return SHARED.get(file, file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByServers | None:
    return ByServers(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folders, and what goes beyond the default run as what it goes beyond."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in MARKED:
            item.add_marker(MARKED[folder])
        if item.get_closest_marker("servers_full"):
            item.add_marker("servers")


# Syntax trees are hundreds of thousands of objects without a cycle among them. Looking for cycles
# after every 700 of them is half of what tests of releases would do.
gc.set_threshold(100_000, 20, 100)


def pytest_sessionfinish() -> None:
    """Leave the parsed releases out of the last garbage collections.

    They take seconds, and a worker that takes long to end is killed while it writes what it has
    measured.
    """
    gc.freeze()


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
def environment() -> Environment:
    """What real servers run in, built once."""
    return ensure(RELEASES)


@pytest.fixture(scope="session")
def observe(environment: Environment) -> Observer:
    """Starts every server once, whichever folder's tests ask for it."""
    return Observer(environment)
