"""What a patched module looks like from inside Python, and beside other import hooks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from rig.site import TAKES_OVER, Site, make_site
from rig.stand_in import FAULTY, FILE, GUARD, edit, patch


HEAD = "from sglang.srt.layers import communicator as c\n"
RUNTIME = "import sglang.srt, sys"
GUARDED = GUARD.splitlines()[0].strip()


def test_a_traceback_shows_the_line_that_ran_and_that_the_file_is_patched(site: Site) -> None:
    code = f"""\
{HEAD}
import traceback
try:
    c.LayerCommunicator.should_fuse(None, type("Batch", (), {{"size": 1}}))
except AttributeError:
    traceback.print_exc()
"""
    assert f'{FILE} [commfix]", line 11, in should_fuse\n    {GUARDED}\n' in site.run(code).stderr


@pytest.mark.parametrize("clear", ["", "import linecache; linecache.clearcache()\n"])
def test_inspect_shows_the_patched_source(site: Site, clear: str) -> None:
    code = f"""\
{HEAD}
import inspect
{clear}
f, g = c.LayerCommunicator.should_fuse, c.LayerCommunicator.other
print({GUARDED!r} in inspect.getsource(f), inspect.getsource(g).split())
"""
    assert site.run(code).stdout == "True ['def', 'other(self):', 'return', '1']\n"


@pytest.mark.parametrize("clear", ["checkcache", "clearcache"])
def test_inspect_shows_the_patched_class_and_module(site: Site, clear: str) -> None:
    code = f"""\
{HEAD}
import inspect, linecache
linecache.{clear}()
source = inspect.getsource(c.LayerCommunicator)
print({GUARDED!r} in source, source.rstrip().endswith("return 1"), {GUARDED!r} in inspect.getsource(c))
"""
    assert site.run(code).stdout == "True True True\n"


def test_what_else_linecache_has_read_it_forgets(site: Site) -> None:
    code = f"""\
{HEAD}
import linecache
linecache.getline(linecache.__file__, 1)
linecache.clearcache()
print(len(linecache.cache), linecache.__file__ in linecache.cache)
"""
    assert site.run(code).stdout == "2 False\n"


def test_the_loader_gives_the_patched_source_and_code(site: Site) -> None:
    code = f"""\
{HEAD}
loader = c.__spec__.loader
print({GUARDED!r} in loader.get_source(c.__name__), loader.get_code(c.__name__).co_filename)
"""
    out = site.run(code).stdout
    assert out.startswith("True ")
    assert out.endswith(f"{FILE} [commfix]\n")


def test_no_byte_code_of_patched_text_is_written_or_read(site: Site) -> None:
    show = (
        HEAD + "print(c.LayerCommunicator.should_fuse.__code__.co_filename.endswith('[commfix]'))"
    )
    cached = Path(site.root / "sglang" / "srt" / "layers" / "__pycache__")
    keep = {"PYTHONDONTWRITEBYTECODE": ""}
    assert site.run(show, **keep).stdout == "True\n"
    assert not list(cached.glob("communicator*"))
    assert site.run(show, select=None, **keep).stdout == "False\n"
    assert list(cached.glob("communicator*"))
    assert site.run(show, **keep).stdout == "True\n"
    assert site.run(show, select=None, **keep).stdout == "False\n"


def test_a_reloaded_module_stays_patched(site: Site) -> None:
    code = (
        HEAD
        + f"""
import importlib, inspect
del c.LayerCommunicator
importlib.reload(c)
print({GUARDED!r} in inspect.getsource(c.LayerCommunicator.should_fuse))
"""
    )
    assert site.run(code).stdout == "True\n"


def test_a_module_imported_anew_is_patched(site: Site) -> None:
    code = (
        HEAD
        + """
import sys
del sys.modules[c.__name__]
import sglang.srt.layers.communicator as again
print(again is not c, again.__commfix__)
"""
    )
    assert site.run(code).stdout == "True ('1-guard',)\n"


def test_the_module_is_what_it_would_be_otherwise(site: Site) -> None:
    code = """
import importlib.util, pkgutil
spec = importlib.util.find_spec("sglang.srt.layers.communicator")
from sglang.srt.layers import communicator as c
import sglang.srt.layers as layers
print(c.__file__ == spec.origin == c.__spec__.origin, c.__name__, c.__package__)
print([m.name for m in pkgutil.iter_modules(layers.__path__)])
print(pkgutil.get_data("sglang.srt.layers.communicator", "data.txt"))
print(c.__spec__.loader.is_package(c.__name__), c.__spec__.loader.path == c.__file__)
"""
    (site.root / "sglang/srt/layers/data.txt").write_text("data")
    patched, plain = (site.run(code, select=select) for select in ("1", None))
    assert patched.stdout == plain.stdout
    assert "['communicator']" in plain.stdout


def test_resources_of_a_patched_package_can_be_read(tmp_path: Path) -> None:
    package = "sglang.srt.layers"
    there = {"module": package, "scope": "f", "find": "return 1", "before": "pass"}
    site = make_site(
        tmp_path,
        patch(edit=[edit(), there]),
        files={"srt/layers/__init__.py": "def f():\n    return 1\n"},
    )
    (site.root / "sglang/srt/layers/data.txt").write_text("data")
    code = f"""
import importlib.resources as r, sys, sglang.srt.layers
print((r.files({package!r}) / "data.txt").read_text())
"""
    # The stand-in's releases do not have that function: a lock of its owner allows it.
    site.command([sys.executable, "-m", "sglang_commfix", "lock", "--allow", "1"])
    result = site.run(code + f"print(hasattr(sys.modules[{package!r}], '__commfix__'))")
    assert result.stdout == "data\nTrue\n"


def test_functions_behind_an_edit_are_read_with_their_own_lines(site: Site) -> None:
    """As Triton's jit does: by the code's file name and first line."""
    code = (
        HEAD
        + """
import linecache
code = c.LayerCommunicator.other.__code__
print(linecache.getline(code.co_filename, code.co_firstlineno).strip())
"""
    )
    assert site.run(code).stdout == "def other(self):\n"


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
def test_other_line_ends_are_shown_as_line_feeds(site: Site, newline: str) -> None:
    file = site.root / "sglang" / FILE
    file.write_bytes(file.read_bytes().replace(b"\n", newline.encode()))
    code = (
        HEAD
        + "import inspect; print(repr(inspect.getsource(c.LayerCommunicator.should_fuse))[-40:])"
    )
    assert site.run(code).stdout.strip().endswith(r"return False\n        return size > 0\n'")


def test_a_file_that_changes_after_the_decision_runs_as_decided(site: Site) -> None:
    code = f"""
import sglang.srt
open({str(site.root / "sglang" / FILE)!r}, "w").write("x = 1")
from sglang.srt.layers import communicator as c
print(hasattr(c, "LayerCommunicator"))
"""
    result = site.run(code)
    assert result.stdout == "True\n"
    assert "changed on disk after this process decided" in result.stderr


OTHER_HOOKS = {
    # Asks the whole meta path again, and wraps the loader it gets.
    "wrapt": """
import wrapt
wrapt.register_post_import_hook(lambda m: print("seen", m.__name__), "sglang.srt.layers.communicator")
""",
    # Asks the path finder and changes the code while it is compiled, as typeguard does.
    "compiling": """
import sys
from importlib.machinery import PathFinder, SourceFileLoader
class Loader(SourceFileLoader):
    def source_to_code(self, data, path, **options):
        print("compiled", b"scattered" in bytes(data))
        return super().source_to_code(data, path, **options)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.endswith("communicator"):
            spec = PathFinder.find_spec(name, path)
            spec.loader = Loader(name, spec.origin)
            return spec
sys.meta_path.insert(sys.meta_path.index(PathFinder), Finder())
""",
    # Only looks where the module would come from.
    "looking": """
import sys, importlib.util
class Finder:
    busy = False
    def find_spec(self, name, path=None, target=None):
        if not self.busy and name.endswith("communicator"):
            self.busy = True
            print("looked", importlib.util.find_spec(name) is not None)
            self.busy = False
sys.meta_path.insert(0, Finder())
""",
    # Puts its own function in the place of the loader's exec_module.
    "replacing": """
import sys, importlib.util
class Finder:
    busy = False
    def find_spec(self, name, path=None, target=None):
        if self.busy or not name.endswith("communicator"):
            return None
        self.busy = True
        spec = importlib.util.find_spec(name)
        self.busy = False
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            print("ran", module.__name__)
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Finder())
""",
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("wrapt", "seen sglang.srt.layers.communicator\n"),
        ("compiling", "compiled True\n"),
        ("looking", "looked True\n"),
        ("replacing", "ran sglang.srt.layers.communicator\n"),
    ],
)
def test_other_import_hooks_work_and_the_patch_too(
    site: Site, hook: str, said: str, when: str
) -> None:
    ours = "import sglang.srt\n"
    code = OTHER_HOOKS[hook] + ours if when == "before" else ours + OTHER_HOOKS[hook]
    result = site.run(
        code
        + HEAD
        + "print(c.__commfix__, c.LayerCommunicator.should_fuse.__code__.co_filename[-9:])"
    )
    assert result.stdout == f"{said}('1-guard',) [commfix]\n"
    assert "UNPATCHED" not in result.stderr


def test_a_hook_that_takes_a_module_over_is_reported(site: Site) -> None:
    result = site.run(RUNTIME + TAKES_OVER)
    assert "ERROR sglang-commfix: sglang.srt.layers.communicator runs UNPATCHED" in result.stderr


def test_under_strict_that_ends_the_process(site: Site) -> None:
    result = site.run(
        RUNTIME + TAKES_OVER + "print('never')", check=False, SGLANG_COMMFIX_STRICT="1"
    )
    assert (result.returncode, result.stdout) == (78, "")


def test_finders_may_be_asked_with_a_name_alone(site: Site) -> None:
    """As some libraries do, which walk over ``sys.meta_path`` by themselves."""
    code = """
    import sys, sglang.srt
    name = "sglang.srt.layers.communicator"
    ours = [f for f in sys.meta_path if type(f).__module__.startswith("sglang_commfix")]
    print([f.find_spec("json") for f in ours], len(ours))
    """
    assert site.run(code).stdout == "[None, None] 2\n"


def test_a_module_found_elsewhere_than_planned_is_not_patched(site: Site, tmp_path: Path) -> None:
    (tmp_path / "communicator.py").write_text(FAULTY)
    code = f"import sglang.srt.layers\nsglang.srt.layers.__path__.insert(0, {str(tmp_path)!r})\n"
    code += OTHER_HOOKS["wrapt"] + HEAD + "print(hasattr(c, '__commfix__'))"
    result = site.run(code)
    assert result.stdout == "seen sglang.srt.layers.communicator\nFalse\n"
    assert result.stderr.count("is not patched: found in") == 1
    assert "runs UNPATCHED" in result.stderr


def test_sglang_found_by_another_finder_is_patched(site: Site) -> None:
    """An editable installation of setuptools puts a finder of its own on the meta path."""
    code = f"""
import sys
from importlib.machinery import PathFinder
where = {str(site.root / "hidden")!r}
class Editable:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "sglang":
            return PathFinder.find_spec(name, [where])
sys.meta_path.append(Editable)
{HEAD}
print(c.__commfix__)
"""
    (site.root / "hidden").mkdir()
    (site.root / "sglang").rename(site.root / "hidden" / "sglang")
    result = site.run(code)
    assert result.stdout == "('1-guard',)\n"
    assert "hidden" in result.stderr


def test_the_embedders_logging_is_left_alone_and_can_take_over(site: Site) -> None:
    code = HEAD + "import logging; print(logging.root.handlers, logging.root.level)"
    assert site.run(code).stdout == "[] 30\n"
    code = """
import logging, sys
logging.getLogger("sglang_commfix").addHandler(logging.StreamHandler(sys.stdout))
import sglang.srt
"""
    result = site.run(code)
    assert result.stderr == ""
    assert result.stdout.startswith("sglang 1.1 at")


def test_a_level_that_the_host_has_set_is_kept(site: Site) -> None:
    head = "import logging; logging.getLogger('sglang_commfix').setLevel('ERROR')\n"
    assert site.run(head + HEAD).stderr == ""
    assert len(site.run(head + HEAD, SGLANG_COMMFIX_LOG="INFO").stderr.splitlines()) == 1


@pytest.mark.parametrize(("level", "lines"), [("DEBUG", 2), ("INFO", 1), ("ERROR", 0)])
def test_the_level_of_the_log_can_be_set(site: Site, level: str, lines: int) -> None:
    assert len(site.run(HEAD, SGLANG_COMMFIX_LOG=level).stderr.splitlines()) == lines
