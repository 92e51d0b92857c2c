"""Fixtures for every folder of tests."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from rig.environment import Environment, ensure
from rig.observer import Observer
from rig.releases import RELEASES
from rig.stand_in import FAULTY, FILE, Upstream, write_sglang

from sglang_commfix.engine.register import Register


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what goes beyond the default run, unless `-m` asks for it.

    What proves an entry is about what releases hold, and shown on one Python.
    """
    for item in items:
        if Path(__file__).parent / "patches" in item.path.parents:
            item.add_marker(pytest.mark.one_python)
    if "servers_full" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("servers_full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


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
