"""wrapt's own tests of import hooks, in a process with the hook of this package at work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest
from rig.site import Site
from wheels import cache_folder


FILES = [
    "post_import_hooks",
    "monkey_patching",
    "resolve_path",
    "deferred_patching",
    "entry_points",
]


@pytest.fixture(scope="module")
def suite() -> Path:
    """The tests in the source distribution of the wrapt that is installed."""
    wanted = version("wrapt")
    folder = cache_folder().parent / "wrapt"
    archive = folder / f"wrapt-{wanted}.tar.gz"
    if not archive.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        options = ["--no-binary", "wrapt", "--dest", str(folder), f"wrapt=={wanted}"]
        subprocess.run([*command, *options], check=True)
    tests = folder / f"wrapt-{wanted}" / "tests"
    if not tests.is_dir():
        with tarfile.open(archive) as source:
            source.extractall(folder, filter="data")
    return tests


@pytest.mark.parametrize("select", [None, "1"])
def test_wrapts_tests_pass_with_the_hook_active(
    suite: Path, site: Site, select: str | None
) -> None:
    """With the variable set, sglang is imported first, so that the patch finder is in place."""
    plugin = site.root / "with_hook.py"
    plugin.write_text(
        "import sys, sglang_commfix\n"
        "assert sglang_commfix.FINDER in sys.meta_path\n"
        "from sglang.srt.layers import communicator\n"
        f"assert hasattr(communicator, '__commfix__') == {select is not None}\n"
    )
    files = [str(suite / "core" / f"test_{name}.py") for name in FILES]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "with_hook", "-p", "no:cacheprovider"]
    result = site.command(
        [*command, "--rootdir", str(suite), *files],
        select=select,
        path=[str(suite / "core")],
        PYTEST_ADDOPTS="",
        PYTHONDONTWRITEBYTECODE=os.environ.get("PYTHONDONTWRITEBYTECODE", ""),
    )
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None, result.stdout
    assert int(passed[1]) >= 58
    assert "failed" not in result.stdout
