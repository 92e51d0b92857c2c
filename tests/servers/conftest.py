"""What the tests of this folder share: one environment, and every server started only once."""

from __future__ import annotations

import pytest
from rig.environment import Environment, ensure
from rig.observation import Observer
from rig.releases import RELEASES


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what goes beyond the default run, unless `-m` asks for it."""
    if "servers_full" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("servers_full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def environment() -> Environment:
    return ensure(RELEASES)


@pytest.fixture(scope="session")
def observe(environment: Environment) -> Observer:
    return Observer(environment)
