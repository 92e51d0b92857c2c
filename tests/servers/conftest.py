"""What the tests of the matrix share: the table that they fill, and how far they are."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO

import pytest
from _pytest._io import TerminalWriter
from rig.matrix import CELLS
from rig.progress import Progress
from rig.results import Results, write


@pytest.fixture(scope="session")
def results() -> Iterator[Results]:
    """Filled by the tests of the matrix; when all of it was run, these are the new results."""
    collected: Results = {}
    yield collected
    if len(collected) == len(CELLS):
        write(collected)


@pytest.fixture(scope="session")
def progress(request: pytest.FixtureRequest) -> Progress:
    """Of the cells of the matrix among the tests of this run."""
    parameters = (getattr(item, "callspec", None) for item in request.session.items)
    cells = [found.params["cell"] for found in parameters if found and "cell" in found.params]
    # pytest's own writer, since all else that is printed is captured; one of several workers has none.
    has_terminal = request.config.pluginmanager.hasplugin("terminalreporter")
    terminal = request.config.get_terminal_writer() if has_terminal else TerminalWriter(StringIO())
    return Progress(
        parts=len(cells),
        effort=sum(cell.effort for cell in cells),
        write=lambda text: terminal.write(text, flush=True),
        live=terminal.hasmarkup,
    )
