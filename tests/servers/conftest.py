"""What the tests of this folder share: one environment, and every server started only once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from generated import bring_up_to_date
from rig.environment import Environment, ensure
from rig.matrix import CELLS
from rig.observation import Observer
from rig.progress import Progress
from rig.releases import RELEASES
from rig.results import Results, read, write
from server_table import PAGE, render


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


@pytest.fixture(scope="session")
def results() -> Iterator[Results]:
    """Filled by the tests of the matrix; when all of it was run, this is the new table."""
    collected: Results = {}
    yield collected
    if len(collected) == len(CELLS):
        write(collected)
        bring_up_to_date({PAGE: render(read())}, check=False)


@pytest.fixture(scope="session")
def progress(request: pytest.FixtureRequest) -> Progress:
    """Of the cells of the matrix among the tests of this run."""
    parameters = (getattr(item, "callspec", None) for item in request.session.items)
    cells = [found.params["cell"] for found in parameters if found and "cell" in found.params]
    # pytest's own writer, since all else that is printed is captured.
    terminal = request.config.get_terminal_writer()
    return Progress(
        parts=len(cells),
        effort=sum(cell.effort for cell in cells),
        write=lambda text: terminal.write(text, flush=True),
        live=terminal.hasmarkup,
    )
