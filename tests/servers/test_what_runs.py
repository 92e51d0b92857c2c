"""Where nothing is wrong, nothing is found wrong: real releases, all patches, strict."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from rig.environment import Environment
from rig.releases import RELEASES


NEWEST = [*RELEASES][-1]
# Every edited module is imported, with all that it imports, and both cold places are passed.
PROGRAM = """
import importlib
from sglang.srt.distributed import parallel_state
from sglang.srt.managers.scheduler import Scheduler
from sglang_commfix.run import session

modules = session.current.modules
for name in modules:
    importlib.import_module(name)
for place, given in ((parallel_state.initialize_model_parallel, 1), (Scheduler.event_loop_normal, None)):
    try:
        place(given)
    except (AssertionError, AttributeError) as error:
        print(type(error).__name__)
print(len(modules) > 5, session.current.modules.keys() <= __import__("sys").modules.keys())
"""


@pytest.mark.parametrize(
    "release",
    [
        pytest.param(
            release,
            marks=pytest.mark.servers if release == NEWEST else pytest.mark.servers_full,
        )
        for release in RELEASES
    ],
)
def test_every_edited_name_of_a_release_leads_to_the_edited_code(
    environment: Environment, tmp_path: Path, release: str
) -> None:
    variables = environment.variables(release, tmp_path)
    result = subprocess.run(
        [str(environment.python), "-c", PROGRAM],
        env=variables | {"SGLANG_COMMFIX": "all", "SGLANG_COMMFIX_STRICT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "AssertionError\nAttributeError\nTrue True\n"
    assert "sglang-commfix: sglang" in result.stderr
    assert "ERROR sglang-commfix" not in result.stderr
