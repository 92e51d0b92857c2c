"""A process runs what it has announced, whoever else hooks in, or says so and under strict ends."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from rig.site import PATCHED, SHOW, Site, make_site
from rig.stand_in import FAULTY, FILE, Upstream, dedented, patch


COMMUNICATOR = "sglang.srt.layers.communicator"
MISSING = """
try:
    import sglang.srt.anything
except ImportError:
    pass
"""
# Five lines that many hooks have: whatever is below sglang is found, and loaded, by themselves.
IN_FRONT = """
import sys
from importlib.machinery import PathFinder
class Front:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sglang":
            return PathFinder.find_spec(name, path)
sys.meta_path.insert(0, Front())
"""
# What looks for a module by asking everybody, and leaves it to them.
LOOKS = """
import importlib.util, sys
class Looks:
    busy = False
    def find_spec(self, name, path=None, target=None):
        if name.startswith("sglang") and not self.busy:
            self.busy = True
            try:
                importlib.util.find_spec(name)
            finally:
                self.busy = False
sys.meta_path.insert(0, Looks())
"""


def outcome(site: Site, code: str, **environ: str) -> tuple[int, str, list[str]]:
    """Exit status, output, and what the log says from ERROR on."""
    result = site.run(code, check=False, **environ)
    errors = [line for line in result.stderr.splitlines() if " INFO " not in line]
    return result.returncode, result.stdout, errors


class TestFinders:
    @pytest.mark.parametrize("hook", [IN_FRONT, LOOKS])
    def test_one_in_front_of_the_start_up_finder_does_not_keep_sglang_from_being_patched(
        self, site: Site, hook: str
    ) -> None:
        between = "import sglang\nimport colorsys\n"  # sglang imports some hundred foreign modules
        assert outcome(site, hook + between + SHOW, SGLANG_COMMFIX_STRICT="1") == (0, PATCHED, [])

    def test_one_that_has_loaded_an_edited_module_before_anything_else_is_an_error(
        self, site: Site
    ) -> None:
        code = f"{IN_FRONT}import {COMMUNICATOR}\nimport colorsys\n"
        status, _, errors = outcome(site, code)
        assert status == 0
        assert len(errors) == 1
        assert f"{COMMUNICATOR} ran before" in errors[0]
        assert outcome(site, code, SGLANG_COMMFIX_STRICT="1")[0] == 78

    def test_one_that_hands_out_a_spec_of_its_own_is_an_error(self, site: Site) -> None:
        code = f"import sglang.srt\n{IN_FRONT}import {COMMUNICATOR}{MISSING}"
        status, _, errors = outcome(site, code)
        assert (status, len(errors)) == (0, 1)
        assert "runs UNPATCHED: it was loaded by SourceFileLoader" in errors[0]
        assert outcome(site, code, SGLANG_COMMFIX_STRICT="1")[0] == 78

    def test_one_that_runs_the_loaders_code_by_itself_is_fine(self, site: Site) -> None:
        code = """\
        import importlib.util, sys, types
        import sglang.srt.layers
        spec = importlib.util.find_spec("sglang.srt.layers.communicator")
        module = types.ModuleType(spec.name)
        sys.modules[spec.name] = module
        exec(spec.loader.get_code(spec.name), module.__dict__)
        """
        code = textwrap.dedent(code) + "sglang.srt.layers.communicator = module\n" + SHOW + MISSING
        assert outcome(site, code) == (0, PATCHED, [])


def rebound(*lines: str, elsewhere: str = "") -> str:
    """A program that puts something else under the edited name, then goes on importing."""
    body = "\n".join(lines)
    return f"import {COMMUNICATOR} as c\n{elsewhere}\nC = c.LayerCommunicator\n{body}\n"


# What stands in front of serving: the process group comes up, or the scheduler's loop begins.
STATE = {
    "srt/distributed/parallel_state.py": "def initialize_model_parallel(size, **more):\n    return size\n",
    "srt/managers/scheduler.py": """
        class Loops:
            def event_loop_normal(self): return "serves"

        class Scheduler(Loops): pass
        """,
}
SERVE = """
from sglang.srt.managers.scheduler import Scheduler
print(Scheduler().event_loop_normal())
"""
LEADS_NOWHERE = {
    "a function": ("C.should_fuse = lambda self, batch: True",),
    "setattr": ("setattr(C, 'should_fuse', lambda self, batch: True)",),
    "a static method": ("C.should_fuse = staticmethod(lambda batch: True)",),
    "a wrapper that has the name alone": (
        "import functools",
        "class G:",
        "    def should_fuse(self, batch): return True",
        "C.should_fuse = functools.wraps(G.should_fuse)(lambda self, batch: True)",
    ),
    "an object": ("C.should_fuse = object()",),
    "a mock": ("from unittest.mock import MagicMock", "C.should_fuse = MagicMock()"),
    "another class": (
        "class Other:",
        "    def should_fuse(self, batch): return True",
        "c.LayerCommunicator = Other",
    ),
    "a mock of the class": (
        "from unittest.mock import MagicMock",
        "c.LayerCommunicator = MagicMock()",
    ),
    "a subclass that overrides it": (
        "class Other(C):",
        "    def should_fuse(self, batch): return True",
        "c.LayerCommunicator = Other",
    ),
    "other code in the function": (
        "def f(self, batch): return True",
        "C.should_fuse.__code__ = f.__code__",
    ),
}
LEADS_THERE = {
    "functools.wraps": (
        "import functools",
        "old = C.should_fuse",
        "@functools.wraps(old)",
        "def new(self, batch): return old(self, batch)",
        "C.should_fuse = new",
    ),
    "a closure": (
        "def around(old):",
        "    def new(*args): return old(*args)",
        "    return new",
        "C.should_fuse = around(C.should_fuse)",
    ),
    "a global": ("old = C.should_fuse", "C.should_fuse = lambda self, batch: old(self, batch)"),
    "an attribute of the class": (
        "C.kept = C.should_fuse",
        "C.should_fuse = lambda self, batch: self.kept(batch)",
    ),
    "a default": (
        "def new(self, batch, old=C.should_fuse): return old(self, batch)",
        "C.should_fuse = new",
    ),
    "an attribute of the function": (
        "def new(self, batch): return new.old(self, batch)",
        "new.old = C.should_fuse",
        "C.should_fuse = new",
    ),
    "partialmethod": (
        "import functools",
        "C.should_fuse = functools.partialmethod(C.should_fuse)",
    ),
    "a cache": ("import functools", "C.should_fuse = functools.lru_cache(C.should_fuse)"),
    "a callable object": (
        "class Call:",
        "    def __init__(self, old): self.old = old",
        "    def __call__(self, batch): return self.old(None, batch)",
        "C.should_fuse = Call(C.should_fuse)",
    ),
    "one with slots": (
        "class Call:",
        "    __slots__ = ('old',)",
        "    def __call__(self, batch): return self.old(None, batch)",
        "call = Call(); call.old = C.should_fuse; C.should_fuse = call",
    ),
    "wrapt": (
        "import wrapt",
        "C.should_fuse = wrapt.FunctionWrapper(C.should_fuse, lambda w, i, a, k: w(*a, **k))",
    ),
    "a mock that calls it": (
        "from unittest.mock import MagicMock",
        "C.should_fuse = MagicMock(side_effect=C.should_fuse)",
    ),
    "a subclass": ("class Other(C): pass", "c.LayerCommunicator = Other"),
    "a subclass that calls it": (
        "class Other(C):",
        "    def should_fuse(self, batch): return super().should_fuse(batch)",
        "c.LayerCommunicator = Other",
    ),
    "another function rebound": ("C.other = lambda self: 2",),
    "nothing": ("",),
}


@pytest.fixture
def serving(tmp_path: Path) -> Site:
    return make_site(tmp_path, files=STATE)


def with_vendor(lines: str) -> dict[str, str]:
    """A vendor's module that the edited one imports at its end, so that no file shows it."""
    head = f"import sys\nc = sys.modules[{COMMUNICATOR!r}]\n"
    text = dedented(FAULTY) + "\n\nfrom sglang.srt import vendor\n"
    return {FILE: text, "srt/vendor.py": f"{head}{lines}\n"}


class TestRebinding:
    @pytest.mark.parametrize("lines", LEADS_NOWHERE.values(), ids=LEADS_NOWHERE)
    def test_a_name_that_leads_elsewhere_is_an_error_before_it_serves(
        self, serving: Site, lines: tuple[str, ...]
    ) -> None:
        code = rebound(*lines) + SERVE
        status, out, errors = outcome(serving, code)
        assert (status, out, len(errors)) == (0, "serves\n", 1)
        assert f"{COMMUNICATOR} runs UNPATCHED: LayerCommunicator.should_fuse is" in errors[0]
        assert outcome(serving, code, SGLANG_COMMFIX_STRICT="1")[:2] == (78, "")

    @pytest.mark.parametrize("lines", LEADS_THERE.values(), ids=LEADS_THERE)
    def test_a_name_that_leads_to_the_edited_code_is_fine(
        self, serving: Site, lines: tuple[str, ...]
    ) -> None:
        code = rebound(*lines) + SERVE
        assert outcome(serving, code, SGLANG_COMMFIX_STRICT="1") == (0, "serves\n", [])

    def test_it_says_who_has_put_it_there(self, serving: Site) -> None:
        code = rebound("C.should_fuse = lambda self, batch: True") + SERVE
        (error,) = outcome(serving, code)[2]
        assert "LayerCommunicator.should_fuse is __main__.<lambda> (" in error
        assert "program.py, line 4)" in error

    def test_it_is_looked_at_when_the_groups_come_up_too(self, serving: Site) -> None:
        code = rebound("C.should_fuse = lambda self, batch: True")
        code += "from sglang.srt.distributed.parallel_state import initialize_model_parallel\n"
        code += "print(initialize_model_parallel(2))\n"
        status, out, errors = outcome(serving, code)
        assert (status, out, len(errors)) == (0, "2\n", 1)

    @pytest.mark.parametrize(
        "below",
        [
            "for name in ['should_fuse']: setattr(c.LayerCommunicator, name, lambda s, b: True)",
            "def swap(cls):\n    cls.should_fuse = lambda s, b: True\nswap(c.LayerCommunicator)",
        ],
    )
    def test_it_is_looked_at_after_the_import(self, tmp_path: Path, below: str) -> None:
        site = make_site(tmp_path, files=with_vendor(below))
        status, _, errors = outcome(site, f"import {COMMUNICATOR}\n")
        assert (status, len(errors)) == (0, 1)
        assert "should_fuse is" in errors[0]

    def test_a_name_under_a_condition_that_is_not_met_is_fine(self, tmp_path: Path) -> None:
        site = make_site(tmp_path, files=with_vendor("del c.LayerCommunicator"))
        assert outcome(site, f"import {COMMUNICATOR}\n")[2] == []


class TestHosts:
    @pytest.mark.parametrize(
        "value",
        [
            "MagicMock()",
            "None",
            "3",
            "types.SimpleNamespace(__spec__=7)",
            "Raises()",
            "type('M', (types.ModuleType,), {'__getattr__': Raises.__getattr__})('m')",
        ],
    )
    @pytest.mark.parametrize("name", [COMMUNICATOR, "sglang.srt.managers.scheduler", "sglang.srt"])
    def test_no_state_of_sys_modules_makes_it_raise(
        self, serving: Site, name: str, value: str
    ) -> None:
        code = f"""\
import sys, types
from unittest.mock import MagicMock
class Raises:
    def __getattribute__(self, name): raise RuntimeError(name)
    def __getattr__(self, name): raise RuntimeError(name)
import sglang.srt.layers
sys.modules["{name}"] = {value}
import sglang.srt.distributed.parallel_state
print("on")
"""
        result = serving.run(code, check=False)
        without = serving.run(code, check=False, select=None)
        assert (result.returncode, result.stdout) == (without.returncode, without.stdout)
        own = [line for line in result.stderr.splitlines() if "sglang-commfix" not in line]
        assert own == without.stderr.splitlines()

    def test_a_start_up_file_with_a_wrapt_hook_on_sglang_starts_one_session(
        self, site: Site
    ) -> None:
        head = "import wrapt\nwrapt.register_post_import_hook(lambda m: None, 'sglang')\n"
        result = site.run(head + SHOW)
        assert (result.stdout, result.stderr.count("\n")) == (PATCHED, 1)

    def test_a_child_forked_while_another_thread_decides_does_not_wait_for_it(
        self, site: Site
    ) -> None:
        code = f"""\
import os, threading, time
from sglang_commfix.run import session
held = threading.Event()
def hold():
    with session.guard:
        held.set()
        time.sleep(30)
threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
{textwrap.indent(SHOW, "    ")}
    import sys; sys.stdout.flush()
    os._exit(0)
for _ in range(200):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        break
    time.sleep(0.05)
else:
    os.kill(child, 9)
    print("it waits")
os._exit(0)
"""
        assert site.run(code).stdout == PATCHED


OTHER = "def asks():\n    return 1\n"


class TestFiles:
    CHANGE = f"""\
import sglang.srt, pathlib
file = pathlib.Path(sglang.__file__).parent / "FILE"
file.write_text(file.read_text() + "# changed\\n")
import {COMMUNICATOR}, sglang.srt.layers.other
"""

    @pytest.mark.parametrize("file", [FILE, "srt/layers/other.py"])
    def test_one_that_changes_after_the_decision_is_an_error(
        self, tmp_path: Path, file: str
    ) -> None:
        site = make_site(tmp_path, files={"srt/layers/other.py": OTHER})
        upstream = Upstream()
        for files in upstream.releases.values():
            files["sglang.srt.layers.other"] = OTHER
        asks = {"module": "sglang.srt.layers.other", "scope": "asks", "why": "it asks"}
        upstream.register(site.register, patch(faulty=[asks]))
        code = self.CHANGE.replace("FILE", file)
        status, _, errors = outcome(site, code)
        assert (status, len(errors)) == (0, 1)
        assert "changed on disk after this process decided" in errors[0]
        assert outcome(site, code, SGLANG_COMMFIX_STRICT="1")[0] == 78
