"""The program in the report for upstream shows what the report says, and nothing with the patch."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from rig.environment import ensure


PATCH = "qwen3-vl-deepstack-fusion"
REPORT = Path(__file__).resolve().parents[3] / "docs" / "upstream" / f"{PATCH}.md"
START = """
import runpy, sys
from rig.shims import placeholders
placeholders.register()
runpy.run_path(sys.argv[1], run_name="__main__")
"""

pytestmark = pytest.mark.servers


def run(release: str, select: str | None, folder: Path) -> tuple[int, str]:
    """What an installed sglang has besides, and the rig has not, is stood in for."""
    found = re.search(r'^```python\n(""".*?)^```', REPORT.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    program = folder / "report.py"
    program.write_text(found[1])
    environment = ensure([release])
    variables = environment.variables(release, folder)
    if select is not None:
        variables["SGLANG_COMMFIX"] = select
    done = subprocess.run(
        [str(environment.python), "-c", START, str(program)],
        env=variables, cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr[-4000:]
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "release", [pytest.param(one, marks=pytest.mark.servers_full) for one in ("0.5.17", "0.5.20")]
)
def test_the_program_prints_what_the_report_says(release: str, tmp_path: Path) -> None:
    status, printed = run(release, None, tmp_path)

    assert status == 1
    assert f"{release}:\n\n```text\n{printed}```" in REPORT.read_text()


@pytest.mark.parametrize(
    "release", [pytest.param(one, marks=pytest.mark.servers_full) for one in ("0.5.17", "0.5.20")]
)
def test_with_the_patch_it_ends_well(release: str, tmp_path: Path) -> None:
    status, _ = run(release, PATCH, tmp_path)

    assert status == 0
