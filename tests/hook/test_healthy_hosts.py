"""Healthy hosts: programs that do odd things around sglang, and must run as they would without us.

Each runs twice: with the variable unset, and with it set under strict, where one ERROR line would
end it. Both times it must exit with 0 and say the same, but for the answer of the edited function.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import textwrap
import zipapp
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rig.site import Site, make_site
from rig.stand_in import FIXED, MODULE, Upstream, dedented, patch
from wheels import fetch


SGLANG = {
    # As the real one does, it imports modules that are not sglang's own before it goes on.
    "__init__.py": "import colorsys\n",
    "srt/layers/communicator.py": '''
import os


class LayerCommunicator:
    """A class."""

    scattered = False

    def should_fuse(self, batch: object) -> bool:
        """A method."""
        size = batch.size  # tokens
        return size > 0

    def other(self, number: int = 1) -> int:
        return number
''',
    "srt/entrypoints/engine.py": """
def _set_envs_and_config(server_args):
    raise SystemExit("signals can only be handled in the main thread")


def launch(server_args):
    from sglang.srt.managers.scheduler import run_scheduler_process
    _set_envs_and_config(server_args)
    run_scheduler_process()
""",
    "srt/managers/scheduler.py": """
from importlib.metadata import entry_points

from sglang.srt.layers.communicator import LayerCommunicator


class Scheduler:
    def event_loop_normal(self):
        import sglang.srt.constrained.backend


def run_scheduler_process():
    for plugin in entry_points(group="sglang.srt.plugins"):
        if plugin.name == "sglang_commfix":
            plugin.load()()
    Scheduler().event_loop_normal()
""",
    "srt/constrained/backend.py": "",
}
# What a program does to serve one request: a scheduler has asked its plug-ins, and is in its loop. Where it is not patched, the answer is True.
SERVE = """
import sys, types
def ask(layer=None):
    from sglang.srt.layers import communicator
    layer = layer or communicator.LayerCommunicator()
    layer.scattered = True
    print("answer:", layer.should_fuse(types.SimpleNamespace(size=1)), flush=True)
def serve():
    from sglang.srt.managers import scheduler
    scheduler.run_scheduler_process()
    ask()
"""
REAL_PLUGINS = ["environ.py", "plugins/__init__.py", "plugins/hook_registry.py"]


@dataclass(frozen=True)
class Host:
    """A program, and how it is started."""

    program: str = "serve()"
    options: tuple[str, ...] = ()  # Python's own
    launcher: tuple[str, ...] = ()  # between Python and the program
    environ: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # beside the program
    needs: str = ""  # the module of a package that has to be installed
    lines: int = 1  # how many processes say what they run with
    version: tuple[int, int] = (3, 10)
    prepare: Callable[[Site], None] = lambda site: None
    command: Callable[[Site], list[str]] | None = None


def in_front(*lines: str) -> str:
    """Return a finder that is asked before all others, whose ``find_spec`` does ``lines``."""
    body = textwrap.indent("\n".join(lines), "        ")
    return f"""
import importlib.util, sys
from importlib.machinery import PathFinder, SourceFileLoader
class Finder:
    busy = False
    def find_spec(self, name, path=None, target=None):
{body}
sys.meta_path.insert(0, Finder())
"""


def around(*lines: str) -> Host:
    """Return a host that puts something around the edited function once sglang is imported."""
    head = "from sglang.srt.layers import communicator\nC = communicator.LayerCommunicator\n"
    return Host(head + "\n".join(lines) + "\nserve()")


def strange(value: str, name: str = "sglang.srt.utils") -> Host:
    """Return a host that puts ``value`` under a name in ``sys.modules``."""
    head = f"import types\nfrom unittest.mock import MagicMock\nsys.modules[{name!r}] = {value}\n"
    return Host(head + "serve()")


def children(method: str, before: str = "", lines: int = 1) -> Host:
    """Return a host that serves in a child."""
    code = f"""
import multiprocessing
def work():
    serve()
if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    {before or "pass"}
    process = context.Process(target=work)
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""
    return Host(code, lines=lines)


def assigning(first: str = "") -> Host:
    """Return a host that puts a function of its own in the place of each loader's ``exec_module``."""
    hook = in_front(
        "if self.busy or not name.startswith('sglang.'):",
        "    return None",
        "self.busy = True",
        "spec = importlib.util.find_spec(name)",
        "self.busy = False",
        "run = spec.loader.exec_module",
        "def exec_module(module):",
        "    run(module)",
        "    print('also:', module.__name__)",
        "spec.loader.exec_module = exec_module",
        "return spec",
    )
    return Host(f"{first}{hook}serve()")


PLUGIN = """
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
def register():
    HookRegistry.register("sglang.srt.layers.communicator.LayerCommunicator{target}", {hook}, HookType.{kind})
{code}
"""
LOAD = "from sglang.srt.plugins import load_plugins\nload_plugins()\nserve()"


def plugin(kind: str, code: str, hook: str = "hook", target: str = ".should_fuse") -> Host:
    """Return a host with a plug-in for sglang, which sglang's own registry calls and applies."""
    text = PLUGIN.format(kind=kind, code=code, hook=hook, target=target)
    entry = "[sglang.srt.plugins]\nvendor = vendor_plugin:register\n"
    dist = "vendor-1.0.dist-info"
    files = {"vendor_plugin.py": text, f"{dist}/entry_points.txt": entry}
    files[f"{dist}/METADATA"] = "Metadata-Version: 2.1\nName: vendor\nVersion: 1.0\n"
    return Host(LOAD, files=files, prepare=real_plugins)


def real_plugins(site: Site) -> None:
    """Put the plug-in registry of a real release into the stand-in."""
    names = [f"sglang/srt/{name}" for name in REAL_PLUGINS]
    release = fetch("0.5.23", names)
    for name in names:
        (site.root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(release / name, site.root / name)


def read_only(site: Site) -> None:
    """Let no byte code be written, for root neither: a file stands where its folder would be."""
    for folder in [site.root, *site.root.rglob("sglang/**/")]:
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
        (folder / "__pycache__").touch()
        folder.chmod(0o555)


def behind_a_link(site: Site) -> None:
    (site.root / "store").mkdir()
    (site.root / "sglang").rename(site.root / "store" / "sglang")
    (site.root / "sglang").symlink_to("store/sglang")


def zipped(site: Site) -> list[str]:
    """Pack the program, and run the archive."""
    folder = site.root / "zipped"
    folder.mkdir(exist_ok=True)
    (site.root / "program.py").rename(folder / "__main__.py")
    zipapp.create_archive(folder, site.root / "program.pyz")
    return [str(site.root / "program.pyz")]


def mended(site: Site) -> None:
    (site.root / "sglang/srt/layers/communicator.py").write_text(
        dedented(FIXED).replace(
            "class LayerCommunicator:", "class LayerCommunicator:\n    scattered = False\n"
        )
    )


ACTOR = """
import asyncio, threading
failed = []
def run(function):
    def guarded():
        try:
            function()
        except BaseException as error:
            failed.append(repr(error))
    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if failed:
        sys.exit(failed[0])
"""
VERL = (
    ACTOR
    + """
import multiprocessing, os
import sglang.srt.entrypoints.engine
def _set_envs_and_config(server_args):
    multiprocessing.set_start_method("spawn", force=True)
    print("also: the host's own settings")
async def launch():
    sglang.srt.entrypoints.engine._set_envs_and_config = _set_envs_and_config
    os.environ["SGLANG_BLOCK_NONZERO_RANK_CHILDREN"] = "0"
    sglang.srt.entrypoints.engine.launch(None)
    ask()
run(lambda: asyncio.run(launch()))
"""
)
DENIED = """
def guard(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(("/proc", "/sys")):
        raise PermissionError(13, "Permission denied", arguments[0])
sys.addaudithook(guard)
"""
FORKED_WHILE_DECIDING = """
import os, threading, time
import sglang_commfix
entered, go_on = threading.Event(), threading.Event()
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "sglang" and threading.current_thread() is not threading.main_thread():
            entered.set()
            go_on.wait()
sys.meta_path.insert(0, Slow())
thread = threading.Thread(target=sglang_commfix.activate, args=(os.environ.get("SGLANG_COMMFIX", "0"),))
thread.start()
entered.wait()
child = os.fork()
if not child:
    serve()
    os._exit(0)
deadline = time.monotonic() + 20
while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
    time.sleep(0.01)
if ended == (0, 0):
    os.kill(child, 9)
go_on.set()
thread.join()
sys.exit("the child hangs" if ended == (0, 0) else ended[1])
"""
PROXIES = """
class Timed:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        find_spec = getattr(self.finder, "find_spec", None)
        return find_spec(name, path, target) if find_spec else None
"""
TYPES = """
try:
    sys.modules["sglang.srt.layers.communicator"].LayerCommunicator().other("x")
except Exception as error:
    print("also:", type(error).__name__)
"""
AGENT = {
    "DD_TRACE_ENABLED": "false",
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    "DD_REMOTE_CONFIGURATION_ENABLED": "false",
    "DD_CRASHTRACKING_ENABLED": "false",
    "NEW_RELIC_DEVELOPER_MODE": "true",
    "NEW_RELIC_STARTUP_TIMEOUT": "0",
}

IMPORT_HOOKS = {
    "typeguard": Host(
        "import typeguard; typeguard.install_import_hook('sglang')\nserve()" + TYPES,
        needs="typeguard",
    ),
    "beartype_claw_of_the_package": Host(
        "import beartype.claw; beartype.claw.beartype_package('sglang')\nserve()",
        needs="beartype",
    ),
    "pytest_rewrites_the_asserts_of_sglang": Host(
        "def test_it():\n    serve()",
        launcher=("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider"),
        environ={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        files={"conftest.py": "import pytest; pytest.register_assert_rewrite('sglang')\n"},
    ),
    "pytest": Host(
        "def test_it():\n    serve()",
        launcher=("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider"),
        environ={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    ),
    "a_finder_in_front_finds_all_of_sglang": Host(
        in_front("if name.startswith('sglang'):", "    return PathFinder.find_spec(name, path)")
        + "serve()"
    ),
    "a_finder_in_front_only_looks": Host(
        in_front(
            "if not self.busy and name.startswith('sglang'):",
            "    self.busy = True",
            "    importlib.util.find_spec(name)",
            "    self.busy = False",
        )
        + "serve()"
    ),
    "a_finder_in_front_changes_the_code": Host(
        """
from importlib.machinery import SourceFileLoader
class Loader(SourceFileLoader):
    def source_to_code(self, data, path, **options):
        text = bytes(data).replace(b"return number", b"return 'changed'")
        return super().source_to_code(text, path, **options)
"""
        + in_front(
            "if name.startswith('sglang'):",
            "    spec = PathFinder.find_spec(name, path)",
            "    spec.loader = Loader(name, spec.origin)",
            "    return spec",
        )
        + "serve()\nprint('also:', sys.modules['sglang.srt.layers.communicator'].LayerCommunicator().other())"
    ),
    "modules_that_load_when_they_are_used": Host(
        in_front(
            "if self.busy or not name.startswith('sglang.srt.layers'):",
            "    return None",
            "self.busy = True",
            "spec = importlib.util.find_spec(name)",
            "self.busy = False",
            "spec.loader = importlib.util.LazyLoader(spec.loader)",
            "return spec",
        )
        + "serve()"
    ),
    "a_finder_in_front_assigns_to_the_loaders": assigning(),
    "a_finder_in_front_assigns_to_the_loaders_behind_sglang": assigning("import sglang.srt\n"),
    "wrapt_is_told_of_imports": Host(
        """
import wrapt
for name in ("sglang", "sglang.srt.layers.communicator"):
    wrapt.register_post_import_hook(lambda module: print("also:", module.__name__), name)
serve()
""",
    ),
    "wrapt_wraps_the_edited_function_when_it_is_imported": Host(
        """
import wrapt
def wrapper(wrapped, instance, args, kwargs):
    print("also: traced")
    return wrapped(*args, **kwargs)
@wrapt.when_imported("sglang.srt.layers.communicator")
def trace(module):
    wrapt.wrap_function_wrapper(module, "LayerCommunicator.should_fuse", wrapper)
serve()
""",
    ),
    "a_loader_on_the_path_hooks": Host(
        """
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder, SourceFileLoader
class Loader(SourceFileLoader):
    def source_to_code(self, data, path, **options):
        text = bytes(data).replace(b"return number", b"return 'changed'")
        return super().source_to_code(text, path, **options)
sys.path_hooks.insert(0, FileFinder.path_hook((ExtensionFileLoader, EXTENSION_SUFFIXES), (Loader, [".py"])))
sys.path_importer_cache.clear()
serve()
print("also:", sys.modules["sglang.srt.layers.communicator"].LayerCommunicator().other())
"""
    ),
    "caches_of_finders_are_dropped": Host(
        "import importlib, sglang; sys.path_importer_cache.clear(); importlib.invalidate_caches()\nserve()"
    ),
}
AGENTS = {
    "ddtrace_run": Host(
        launcher=("-c", "from ddtrace.commands.ddtrace_run import main; main()", sys.executable),
        environ=AGENT,
        needs="ddtrace",
    ),
    "ddtrace_wraps_the_edited_function": Host(
        """
from ddtrace.internal.wrapping import wrap
from sglang.srt.layers.communicator import LayerCommunicator
def wrapper(f, args, kwargs):
    print("also: traced")
    return f(*args, **kwargs)
wrap(LayerCommunicator.should_fuse, wrapper)
serve()
""",
        environ=AGENT,
        needs="ddtrace",
    ),
    "ddtrace_writes_into_the_edited_function": Host(
        """
from ddtrace.internal.wrapping.context import WrappingContext
from sglang.srt.layers.communicator import LayerCommunicator
class Traced(WrappingContext):
    def __enter__(self):
        print("also: entered")
        return super().__enter__()
Traced(LayerCommunicator.should_fuse).wrap()
serve()
""",
        environ=AGENT,
        needs="ddtrace",
    ),
    "newrelic_admin": Host(
        launcher=("-m", "newrelic.admin", "run-program", sys.executable),
        environ=AGENT,
        needs="newrelic",
    ),
    "newrelic_traces_the_edited_function": Host(
        """
import newrelic.agent
from newrelic.api.import_hook import import_hook
@import_hook("sglang.srt.layers.communicator")
def instrument(module):
    print("also: told")
    newrelic.agent.wrap_function_trace(module, "LayerCommunicator.should_fuse")
import newrelic.config
newrelic.config.initialize()
serve()
""",
        environ=AGENT,
        needs="newrelic",
    ),
    "coverage_run": Host(launcher=("-m", "coverage", "run", "--branch"), needs="coverage"),
    "coverage_by_monitoring": Host(
        launcher=("-m", "coverage", "run"),
        environ={"COVERAGE_CORE": "sysmon"},
        needs="coverage",
        version=(3, 12),
    ),
    "a_debugger": Host(
        """
import threading
seen = set()
def trace(frame, event, argument):
    seen.add(frame.f_code.co_name)
    return trace
threading.settrace(trace); sys.settrace(trace); sys.setprofile(lambda *_: None)
serve()
print("also:", "should_fuse" in seen)
"""
    ),
    "tracemalloc_and_faulthandler": Host(
        "import faulthandler, gc; gc.freeze(); gc.disable()\nserve()",
        options=("-X", "tracemalloc", "-X", "faulthandler"),
    ),
}
META_PATH = {
    "the_meta_path_is_replaced_by_a_copy": Host("sys.meta_path = list(sys.meta_path)\nserve()"),
    "the_meta_path_is_replaced_by_a_copy_behind_sglang": Host(
        "import sglang.srt; sys.meta_path = list(sys.meta_path)\nserve()"
    ),
    "the_meta_path_is_sorted": Host(
        "sys.meta_path.sort(key=lambda finder: finder.__module__ == '_frozen_importlib_external')\nserve()"
    ),
    "the_meta_path_is_sorted_behind_sglang": Host(
        "import sglang.srt\n"
        "sys.meta_path.sort(key=lambda finder: finder.__module__ == '_frozen_importlib_external')\nserve()"
    ),
    "a_finder_in_front_asks_a_copy_of_the_others": Host(
        "others = list(sys.meta_path)\n"
        + in_front(
            "for finder in others:",
            "    if spec := finder.find_spec(name, path, target): return spec",
        )
        + "serve()"
    ),
    "a_finder_in_front_asks_a_copy_of_the_others_behind_sglang": Host(
        "import sglang.srt\nothers = list(sys.meta_path)\n"
        + in_front(
            "for finder in others:",
            "    if spec := finder.find_spec(name, path, target): return spec",
        )
        + "serve()"
    ),
    "the_meta_path_is_restored_behind_sglang": Host(
        "saved = sys.meta_path[:]\nimport sglang.srt\nsys.meta_path[:] = saved\nserve()"
    ),
    "each_finder_is_wrapped": Host(
        PROXIES + "sys.meta_path[:] = map(Timed, sys.meta_path)\nserve()"
    ),
    "a_finder_of_the_old_kind": Host(
        "class Old:\n    def find_module(self, name, path=None): return None\n"
        "sys.meta_path.insert(0, Old()); sys.meta_path.append(Old())\nserve()"
    ),
}
MODULES = {
    "None_for_a_module": strange("None"),
    "a_mock_for_a_module": strange("MagicMock()"),
    "a_namespace_for_a_module": strange("types.SimpleNamespace()"),
    "a_number_for_a_module": strange("1"),
    "a_module_without_a_spec": strange("types.ModuleType('sglang.srt.utils')"),
    "an_object_that_refuses_every_attribute": Host(
        """
class Refusing:
    def __getattribute__(self, name):
        raise RuntimeError(name)
sys.modules["sglang.srt.utils"] = Refusing()
serve()
"""
    ),
    "a_number_for_a_name": Host("sys.modules[1] = None\nserve()\ndel sys.modules[1]"),
    "sglang_is_forgotten_and_imported_anew": Host(
        """
serve()
for name in [name for name in sys.modules if name.partition(".")[0] == "sglang"]:
    del sys.modules[name]
serve()
"""
    ),
    "whatever_is_named_like_sglang_is_forgotten": Host(
        """
serve()
for name in [name for name in sys.modules if name.startswith("sglang")]:
    del sys.modules[name]
serve()
"""
    ),
    "mock_patch_dict_of_the_modules": Host(
        "from unittest import mock\nwith mock.patch.dict(sys.modules):\n    serve()\nserve()"
    ),
    "a_module_of_another_class": Host(
        """
import types
class Lazy(types.ModuleType):
    def __getattr__(self, name):
        raise AttributeError(name)
from sglang.srt.layers import communicator
communicator.__class__ = Lazy
serve()
"""
    ),
    "reload": Host(
        "import importlib\nfrom sglang.srt.layers import communicator\n"
        "serve(); importlib.reload(communicator); serve()"
    ),
}
# In the place of the edited module itself.
MOCKED = {
    "None": "None",
    "a_mock": "MagicMock()",
    "a_namespace": "types.SimpleNamespace(LayerCommunicator=MagicMock)",
    "a_number": "1",
    "a_module_without_a_spec": "types.ModuleType('sglang.srt.layers.communicator')",
    "an_object_that_refuses_every_attribute": "Refusing()",
}
MOCKING = """
import types
from unittest.mock import MagicMock
class Refusing:
    def __getattribute__(self, name):
        raise RuntimeError(name)
import sglang.srt
sys.modules["sglang.srt.layers.communicator"] = {value}
import sglang.srt.entrypoints.engine
import sglang.srt.constrained.backend
print("also: goes on")
"""
AROUND = {
    "a_decorator": around(
        "import functools",
        "def traced(f):",
        "    @functools.wraps(f)",
        "    def inner(*args): return f(*args)",
        "    return inner",
        "C.should_fuse = traced(C.should_fuse)",
    ),
    "a_decorator_that_hides_what_it_calls": around(
        "def traced(f):",
        "    return lambda *args: f(*args)",
        "C.should_fuse = traced(C.should_fuse)",
    ),
    "decorators_ten_deep": around(
        "def traced(f):",
        "    return lambda *args: f(*args)",
        "for _ in range(10): C.should_fuse = traced(C.should_fuse)",
    ),
    "the_original_is_a_global": around(
        "original = C.should_fuse",
        "def should_fuse(self, batch): return original(self, batch)",
        "C.should_fuse = should_fuse",
    ),
    "the_original_is_in_a_dictionary": around(
        "originals = {'should_fuse': C.should_fuse}",
        "def should_fuse(self, batch): return originals['should_fuse'](self, batch)",
        "C.should_fuse = should_fuse",
    ),
    "the_original_is_another_attribute": around(
        "C._original_should_fuse = C.should_fuse",
        "def should_fuse(self, batch): return self._original_should_fuse(batch)",
        "C.should_fuse = should_fuse",
    ),
    "the_original_is_in_another_module": Host(
        around(
            "import keeper",
            "keeper.original = C.should_fuse",
            "def should_fuse(self, batch): return keeper.original(self, batch)",
            "C.should_fuse = should_fuse",
        ).program,
        files={"keeper.py": ""},
    ),
    "the_original_is_in_a_module_of_a_package": Host(
        around(
            "import vendor.keeper",
            "vendor.keeper.original = C.should_fuse",
            "def should_fuse(self, batch): return vendor.keeper.original(self, batch)",
            "C.should_fuse = should_fuse",
        ).program,
        files={"vendor/__init__.py": "", "vendor/keeper.py": ""},
    ),
    "the_original_is_imported_with_each_call": Host(
        around(
            "import keeper",
            "keeper.original = C.should_fuse",
            "def should_fuse(self, batch):",
            "    from keeper import original",
            "    return original(self, batch)",
            "C.should_fuse = should_fuse",
        ).program,
        files={"keeper.py": ""},
    ),
    "the_original_is_in_another_class": around(
        "class Patch:",
        "    original = staticmethod(C.should_fuse)",
        "    @classmethod",
        "    def call(cls, *args): return cls.original(*args)",
        "C.should_fuse = lambda self, batch: Patch.call(self, batch)",
    ),
    "the_original_is_in_a_class_in_a_closure": around(
        "def traced(f):",
        "    class Traced: original = f",
        "    return lambda self, batch: Traced.original(self, batch)",
        "C.should_fuse = traced(C.should_fuse)",
    ),
    "the_original_is_named_by_a_string": around(
        "setattr(C, '_original', C.should_fuse)",
        "def should_fuse(self, batch): return getattr(self, '_original')(batch)",
        "C.should_fuse = should_fuse",
    ),
    "the_original_is_one_of_many": around(
        "originals = {number: types.SimpleNamespace() for number in range(20000)}",
        "originals['should_fuse'] = C.should_fuse",
        "def should_fuse(self, batch): return originals['should_fuse'](self, batch)",
        "C.should_fuse = should_fuse",
    ),
    "the_original_is_a_default": around(
        "def should_fuse(self, batch, original=C.should_fuse): return original(self, batch)",
        "C.should_fuse = should_fuse",
    ),
    "partialmethod": around(
        "import functools",
        "original = C.should_fuse",
        "def traced(self, f, batch): return f(self, batch)",
        "C.should_fuse = functools.partialmethod(traced, original)",
    ),
    "partial": around(
        "import functools",
        "def traced(f, batch): return f(types.SimpleNamespace(scattered=True), batch)",
        "C.should_fuse = functools.partial(traced, C.should_fuse)",
        "ask()",
    ),
    "a_callable_object": around(
        "class Traced:",
        "    def __init__(self, f): self.f = f",
        "    def __call__(self, *args): return self.f(*args)",
        "    def __get__(self, instance, owner=None):",
        "        return self if instance is None else types.MethodType(self, instance)",
        "C.should_fuse = Traced(C.should_fuse)",
    ),
    "an_object_whose_class_knows_the_original": around(
        "def traced(f):",
        "    class Traced:",
        "        def __call__(self, *args): return f(*args)",
        "        def __get__(self, instance, owner=None):",
        "            return self if instance is None else types.MethodType(self, instance)",
        "    return Traced()",
        "C.should_fuse = traced(C.should_fuse)",
    ),
    "an_object_beside_the_original_that_hides_its_class": around(
        "class Hidden:",
        "    __class__ = property(lambda self: 1 / 0)",
        "def traced(f, hidden):",
        "    return lambda *args: f(*args) if hidden is not None else None",
        "C.should_fuse = traced(C.should_fuse, Hidden())",
    ),
    "an_object_whose_class_is_of_no_module": around(
        "Call = type('Call', (), {'__module__': None, '__call__': lambda self, *args: self.f(*args)})",
        "call = Call(); call.f = C.should_fuse",
        "C.should_fuse = lambda self, batch: call(self, batch)",
    ),
    "what_it_calls_looks_for_the_module_of_its_caller": around(
        "import inspect",
        "class Batch:",
        "    @property",
        "    def size(self):",
        "        print('also:', inspect.getmodule(sys._getframe(1)).__name__)",
        "        return 1",
        "C().should_fuse(Batch())",
    ),
    "a_context_manager_as_a_decorator": around(
        "import contextlib",
        "@contextlib.contextmanager",
        "def annotated(): yield",
        "C.should_fuse = annotated()(C.should_fuse)",
    ),
    "wrapt_decorator": around(
        "import wrapt",
        "@wrapt.decorator",
        "def traced(wrapped, instance, args, kwargs): return wrapped(*args, **kwargs)",
        "C.should_fuse = traced(C.should_fuse)",
    ),
    "a_copy_of_the_function": around(
        "f = C.should_fuse",
        "C.should_fuse = types.FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__)",
    ),
    "the_code_is_written_anew": around(
        "code = C.should_fuse.__code__",
        "C.should_fuse.__code__ = code.replace(co_consts=(*code.co_consts, None))",
    ),
    "a_subclass": around(
        "class Vendor(C):",
        "    def other(self): return 2",
        "communicator.LayerCommunicator = Vendor",
    ),
    "a_subclass_that_calls_super": around(
        "class Vendor(C):",
        "    def should_fuse(self, batch): return super().should_fuse(batch)",
        "communicator.LayerCommunicator = Vendor",
    ),
    "another_function_of_the_class_is_replaced": around(
        "C.other = lambda self: 2", "print('also:', C().other())"
    ),
    "an_instance_is_instrumented": around(
        "layer = C()",
        "original = layer.should_fuse",
        "layer.should_fuse = lambda batch: original(batch)",
        "ask(layer)",
    ),
    "mock_patch_for_a_while": around(
        "from unittest import mock",
        "with mock.patch.object(C, 'should_fuse', return_value=None): C().should_fuse(None)",
    ),
    "mock_wraps": around(
        "from unittest import mock",
        "C.should_fuse = mock.create_autospec(C.should_fuse, side_effect=C.should_fuse)",
    ),
    "verl_rebinds_the_engines_settings_in_an_actor": Host(VERL),
}
PLUGINS = {
    "a_plugin_around_the_edited_function": plugin(
        "AROUND",
        "def hook(original, *args, **kwargs):\n    print('also: around')\n    return original(*args, **kwargs)",
    ),
    "a_plugin_before_the_edited_function": plugin(
        "BEFORE", "def hook(*args, **kwargs):\n    print('also: before')"
    ),
    "a_plugin_behind_the_edited_function": plugin(
        "AFTER", "def hook(result, *args, **kwargs):\n    print('also: behind')"
    ),
    "a_plugin_that_puts_a_subclass_in_the_place_of_the_class": plugin(
        "REPLACE",
        """
from sglang.srt.layers.communicator import LayerCommunicator
class Vendor(LayerCommunicator):
    def other(self, number: int = 1) -> int:
        return 2
""",
        hook="Vendor",
        target="",
    ),
    "a_plugin_that_replaces_another_function": plugin(
        "REPLACE", "def hook(self, number=1):\n    return 2", target=".other"
    ),
    "hardware_plugins": Host(
        "from sglang.srt.plugins import PLATFORM_PLUGINS_GROUP, load_plugins_by_group\n"
        "for function, _ in load_plugins_by_group(PLATFORM_PLUGINS_GROUP).values(): print('also:', function())\n"
        + LOAD,
        environ={"SGLANG_PLATFORM": "vendor"},
        files={
            "vendor_platform.py": "def register():\n    return 'vendor_platform.Platform'\n",
            "vendor-1.0.dist-info/entry_points.txt": "[sglang.srt.platforms]\nvendor = vendor_platform:register\n",
            "vendor-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vendor\nVersion: 1.0\n",
        },
        prepare=real_plugins,
    ),
    "only_some_plugins_are_let_in": Host(
        LOAD, environ={"SGLANG_PLUGINS": "another"}, prepare=real_plugins
    ),
}
PROCESSES = {
    "fork": children("fork"),
    "fork_behind_sglang": children("fork", "import sglang.srt.layers.communicator"),
    "spawn": children("spawn"),
    "spawn_behind_sglang": children("spawn", "serve()", lines=2),
    "forkserver": children("forkserver"),
    "forkserver_that_has_loaded_sglang": children(
        "forkserver", "context.set_forkserver_preload(['sglang.srt.layers.communicator'])"
    ),
    "a_pool_of_processes": Host(
        """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
def work(number):
    serve()
if __name__ == "__main__":
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(work, range(2)))
"""
    ),
    "exec": Host(
        """
import os
if "AGAIN" not in os.environ:
    import sglang.srt
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "AGAIN": "1"})
serve()
""",
        lines=2,
    ),
    "a_daemon": Host(
        """
import os
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os.setsid()
os.chdir("/")
serve()
"""
    ),
    "a_fork_while_another_thread_is_in_activate": Host(FORKED_WHILE_DECIDING),
    "a_thread": Host(ACTOR + "run(serve)"),
    "threads_at_once": Host(
        """
import threading
failed, lock = [], threading.Lock()
def work():
    try:
        barrier.wait()
        from sglang.srt.managers import scheduler
        scheduler.run_scheduler_process()
    except BaseException as error:
        failed.append(error)
barrier = threading.Barrier(8)
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("also:", failed)
serve()
"""
    ),
    "an_event_loop_in_a_thread": Host(
        ACTOR + "async def call(): serve()\nrun(lambda: asyncio.run(call()))"
    ),
    "asyncio_to_thread": Host(
        "import asyncio\nasync def call(): await asyncio.to_thread(serve)\nasyncio.run(call())"
    ),
    "activate_twice": Host(
        "import os, sglang_commfix\nif 'SGLANG_COMMFIX' in os.environ:\n"
        "    assert sglang_commfix.activate() is sglang_commfix.activate()\nserve()"
    ),
    "activate_in_a_thread": Host(
        ACTOR + "import os, sglang_commfix\nif 'SGLANG_COMMFIX' in os.environ:\n"
        "    run(sglang_commfix.activate)\nserve()"
    ),
    "activate_behind_sglang": Host(
        "import os, sglang, sglang_commfix\nif 'SGLANG_COMMFIX' in os.environ:\n"
        "    sglang_commfix.activate()\nserve()"
    ),
    "an_import_at_the_very_end": Host("import atexit; atexit.register(serve)"),
}
SHAPES = {
    "a_program_in_an_archive": Host(command=zipped),
    "a_program_as_an_argument": Host(
        command=lambda site: [
            "-c",
            "import runpy; runpy.run_path('program.py', run_name='__main__')",
        ]
    ),
    "a_module_run_as_a_program": Host(command=lambda site: ["-m", "program"]),
    "modules_named_as_ours": Host(
        "import errors, files, lock, run, patches\nserve()",
        files=dict.fromkeys(
            ["errors.py", "files.py", "lock.py", "run/__init__.py", "patches/__init__.py"], ""
        ),
    ),
    "importtime": Host(options=("-X", "importtime")),
    "warnings_are_errors": Host(options=("-W", "error")),
    "every_warning_is_an_error": Host(
        options=("-bb", "-X", "dev", "-X", "warn_default_encoding", "-W", "error")
    ),
    "verbose": Host(options=("-v",)),
    "optimised": Host(options=("-OO",)),
    "no_folder_of_the_program_on_the_path": Host(options=("-P",), version=(3, 11)),
    "no_byte_code": Host(environ={"PYTHONDONTWRITEBYTECODE": "1"}),
    "byte_code_elsewhere": Host(
        environ={"PYTHONPYCACHEPREFIX": "elsewhere", "PYTHONDONTWRITEBYTECODE": ""}
    ),
    "a_read_only_installation": Host(prepare=read_only, environ={"PYTHONDONTWRITEBYTECODE": ""}),
    "sglang_behind_a_symbolic_link": Host(prepare=behind_a_link),
    "an_sglang_that_is_mended": Host(prepare=mended),
    "no_proc_and_no_sys": Host(DENIED + "serve()"),
    "no_home_and_no_temporary_folder": Host(
        "import os\nfor name in ('HOME', 'USER', 'LANG', 'PATH'): os.environ.pop(name, None)\nserve()",
        environ={"TMPDIR": "/nowhere", "LC_ALL": "C", "PYTHONUTF8": "0"},
    ),
    "the_working_folder_is_gone": Host(
        "import os, tempfile\nfolder = tempfile.mkdtemp(); os.chdir(folder); os.rmdir(folder)\nserve()"
    ),
    "a_low_recursion_limit": Host("sys.setrecursionlimit(150)\nserve()"),
}
LOGS = {
    "logging_set_up_before": Host(
        "import logging; logging.basicConfig(level='DEBUG', stream=sys.stdout, format='also: %(message)s')\nserve()"
    ),
    "logging_set_up_behind": Host(
        """
import logging.config, sglang.srt
root = {"handlers": ["out"], "level": "DEBUG"}
out = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "also"}
logging.config.dictConfig({
    "version": 1, "disable_existing_loggers": True, "root": root, "handlers": {"out": out},
    "formatters": {"also": {"format": "also: %(message)s"}},
})
serve()
"""
    ),
    "loggers_and_records_of_its_own": Host(
        """
import logging
class Logger(logging.Logger):
    def makeRecord(self, *args, **kwargs):
        record = super().makeRecord(*args, **kwargs)
        record.rank = 0
        return record
logging.setLoggerClass(Logger)
factory = logging.getLogRecordFactory()
logging.setLogRecordFactory(lambda *args, **kwargs: factory(*args, **kwargs))
logging.captureWarnings(True)
serve()
"""
    ),
    "logging_is_off": Host("import logging; logging.disable(logging.CRITICAL)\nserve()", lines=0),
    "no_standard_error": Host("sys.stderr = None\nserve()", lines=0),
    "standard_error_is_closed": Host("sys.stderr.close()\nserve()", lines=0),
    "standard_error_is_broken": Host(
        "class Broken:\n    def write(self, text): raise BrokenPipeError(32, 'Broken pipe')\n"
        "    def flush(self): pass\nsys.stderr = Broken()\nserve()\nsys.stderr = sys.__stderr__",
        lines=0,
    ),
    "standard_error_is_an_object_of_the_host": Host(
        "class Capture:\n    def write(self, text): sys.__stderr__.write(text)\n    def flush(self): pass\nsys.stderr = Capture()\nserve()"
    ),
    "our_line_in_the_hosts_own_log": Host(
        "import logging\nours = logging.getLogger('sglang_commfix'); ours.addHandler(logging.NullHandler())\nserve()",
        lines=0,
    ),
}
# What cannot be patched, or what the host has put out of force, is said, and strict ends it.
UNHEALTHY = {
    "each_finder_is_wrapped_behind_sglang": Host(
        PROXIES + "import sglang.srt; sys.meta_path[:] = map(Timed, sys.meta_path)\nserve()"
    ),
    "the_meta_path_is_turned_round": Host("sys.meta_path.reverse()\nserve()"),
    "the_meta_path_is_turned_round_behind_sglang": Host(
        "import sglang.srt; sys.meta_path.reverse()\nserve()"
    ),
    "something_that_never_calls_the_original": around("C.should_fuse = lambda self, batch: True"),
    "a_subclass_that_never_calls_super": around(
        "class Vendor(C):",
        "    def should_fuse(self, batch): return True",
        "communicator.LayerCommunicator = Vendor",
    ),
    "a_plugin_that_replaces_the_edited_function": plugin(
        "REPLACE", "def hook(self, batch):\n    return True"
    ),
}
HOSTS = IMPORT_HOOKS | AGENTS | META_PATH | MODULES | AROUND | PLUGINS
HOSTS |= PROCESSES | SHAPES | LOGS


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site with a richer stand-in than other tests need; each test works on a copy."""
    upstream = Upstream()
    for release in ("1.1", "1.2"):
        upstream.releases[release][MODULE] = dedented(SGLANG["srt/layers/communicator.py"])
    site = make_site(tmp_path_factory.mktemp("hosts"), files=SGLANG)
    upstream.register(site.register, patch())
    return site


@pytest.fixture
def site(template: Site, tmp_path: Path) -> Site:
    shutil.copytree(template.root, tmp_path / "site")
    return Site(tmp_path / "site", template.register)


def tools() -> list[str]:
    """The folder with the packages of hosts, which nox fills; without it, what is installed counts."""
    return [folder] if (folder := os.environ.get("HOST_PACKAGES", "")) else []


def installed(name: str) -> bool:
    here = importlib.util.find_spec(name) is not None
    return here or any(Path(folder, name).is_dir() for folder in tools())


def says(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(("answer: ", "also: "))]


def start(
    host: Host, site: Site, select: str | None, status: int = 0
) -> tuple[list[str], list[str], list[str]]:
    """Return what the host has said, what this package has, and what else stands on standard error."""
    (site.root / "program.py").write_text(SERVE + host.program)
    for name, text in host.files.items():
        (site.root / name).parent.mkdir(exist_ok=True)
        (site.root / name).write_text(text)
    words = host.command(site) if host.command else ["program.py"]
    result = site.command(
        [sys.executable, *host.options, *host.launcher, *words],
        select=select,
        check=False,
        path=tools() if host.needs else [],
        SGLANG_COMMFIX_STRICT="1",
        PYTEST_ADDOPTS="",
        **host.environ,
    )
    assert result.returncode == status, result.stdout + result.stderr
    lines = result.stderr.splitlines()
    ours = [line for line in lines if "sglang-commfix: " in line]
    return says(result.stdout), ours, [line for line in lines if line not in ours]


@pytest.mark.one_python
@pytest.mark.parametrize("name", HOSTS)
def test_host(name: str, site: Site) -> None:
    host = HOSTS[name]
    if sys.version_info[:2] < host.version:
        pytest.skip(f"Python {host.version} and later")
    if host.needs and not installed(host.needs):
        pytest.skip(f"{host.needs} is not installed")
    host.prepare(site)
    plain, silent, noise = start(host, site, None)
    assert silent == []
    assert plain
    patched, ours, more = start(host, site, "1")
    assert patched == [line.replace("answer: True", "answer: False") for line in plain]
    assert [line.split(" ")[3] for line in ours] == ["INFO"] * host.lines, ours
    if not {"importtime", "-v"} & {*host.options}:
        assert len(more) <= len(noise), more


@pytest.mark.one_python
@pytest.mark.parametrize("name", MOCKED)
def test_who_plays_the_edited_module_goes_on(name: str, site: Site) -> None:
    """It is no server, so that it may be told about it, and is not strict."""
    program = SERVE + MOCKING.format(value=MOCKED[name])
    said = [says(site.run(program, select=select).stdout) for select in (None, "1")]
    assert said == [["also: goes on"]] * 2


@pytest.mark.one_python
@pytest.mark.parametrize("name", UNHEALTHY)
def test_an_unhealthy_host_is_told(name: str, site: Site) -> None:
    host = UNHEALTHY[name]
    host.prepare(site)
    plain, silent, _ = start(host, site, None)
    assert (plain, silent) == (["answer: True"], [])
    said, ours, _ = start(host, site, "1", status=78)
    assert said == []
    assert ["ERROR" in line for line in ours] == [False] * (len(ours) - 1) + [True]


def test_the_page_lists_every_host() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    _, _, half = page.partition("## Healthy hosts\n")
    rows = [line for line in half.splitlines() if line.startswith("| ")]
    named = [name for row in rows for name in re.findall(r"`test_([^`]+)`", row)]
    hosts = [f"host[{name}]" for name in HOSTS]
    hosts += [f"who_plays_the_edited_module_goes_on[{name}]" for name in MOCKED]
    hosts += [f"an_unhealthy_host_is_told[{name}]" for name in UNHEALTHY]
    assert sorted(named) == sorted(hosts)


def test_every_row_of_what_can_go_wrong_names_tests_that_exist() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "reliability.md").read_text()
    half = page.partition("## What can go wrong\n")[2].partition("## Healthy hosts\n")[0]
    rows = [line for line in half.splitlines() if line.startswith("| ")]
    tests = "".join(file.read_text() for file in (root / "tests").rglob("test_*.py"))
    for row in rows:
        what, *_, names = row.strip("| ").split(" | ")
        assert what == "what happens" or re.findall(r"`(test_\w+)`", names), row
        for name in re.findall(r"`(test_\w+)`", names):
            assert f"def {name}(" in tests
