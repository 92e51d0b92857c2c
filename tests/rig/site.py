"""Run Python processes as a user would, with the start-up hook of this environment."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from rig.stand_in import FAULTY, FILE, Upstream, patch, write_sglang


# The real register knows nothing of the stand-in, so a process under test gets another one, without
# the locks that ship with the real one. This is the only thing that is not as it is for a user.
USE_REGISTER = """
import sglang_commfix.engine.register as _register
import sglang_commfix.run.plan as _plan
from functools import cache as _cache
from pathlib import Path as _Path
_register.patches_folder = lambda: _Path({folder!r})
_plan.SHIPPED = _Path({folder!r}, "no locks")
"""

# In front of all others, it loads a module of the plan by itself. The import that fails is one more
# occasion to look at what runs.
TAKES_OVER = """
from importlib.machinery import PathFinder
class Rude:
    def find_spec(self, name, path=None, target=None):
        if name.endswith("communicator"):
            return PathFinder.find_spec(name, path)
sys.meta_path.insert(0, Rude())
from sglang.srt.layers import communicator
try:
    import sglang.srt.anything
except ImportError:
    pass
"""


# What the edited function answers, and what it answers without the edit.
SHOW = """
from sglang.srt.layers import communicator
class Batch: size = 1
class Self: scattered = True
print(communicator.LayerCommunicator.should_fuse(Self, Batch))
"""
PATCHED, UNPATCHED = "False\n", "True\n"


@dataclass
class Site:
    """A folder with a fake sglang, a register for it, and a way to run Python there."""

    root: Path
    register: Path

    def run(
        self,
        code: str,
        *options: str,
        select: str | None = "1",
        check: bool = True,
        path: list[str] | None = None,
        **environ: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``code`` with this site's sglang on the path."""
        file = self.root / "program.py"
        file.write_text(textwrap.dedent(code))
        command = [sys.executable, *options, str(file)]
        return self.command(command, select=select, check=check, path=path, **environ)

    def command(
        self,
        command: list[str],
        *,
        select: str | None = "1",
        check: bool = True,
        path: list[str] | None = None,
        **environ: str,
    ) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SGLANG_COMMFIX")}
        clean["PYTHONPATH"] = os.pathsep.join([*(path or []), str(self.root)])
        if select is not None:
            clean["SGLANG_COMMFIX"] = select
        result = subprocess.run(
            command,
            env=clean | environ,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if check:
            assert result.returncode == 0, result.stderr
        return result


def make_site(
    folder: Path, *patches: dict[str, object], files: dict[str, str] | None = None
) -> Site:
    """Write a site whose sglang has the fault that the register's patch ``1-guard`` fixes."""
    register = folder / "register"
    Upstream().register(register, *(patches or (patch(),)))
    root = write_sglang(folder / "site", {FILE: FAULTY, **(files or {})})
    # Modules that a start-up hook may import before the register is first read.
    (root / "sitecustomize.py").write_text(USE_REGISTER.format(folder=str(register)))
    return Site(root, register)
