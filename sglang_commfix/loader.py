"""The import hook: modules of the plan run their edited text, everything else is left alone."""

from __future__ import annotations

import linecache
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wrapt import notify_module_loaded

from sglang_commfix import log
from sglang_commfix.installed import find_elsewhere


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType

    from sglang_commfix.plan import Rewritten

# In a patched module's globals: the ids of its patches.
MARK = "__commfix__"
_SUFFIX = " [commfix]"


class PatchFinder:
    """Finds the modules of a plan, as the other finders do, with a loader that runs the new text.

    Other import hooks keep working on either side of this one. A hook that asks the whole of
    ``sys.meta_path`` again from inside its own ``find_spec`` meets this finder a second time, and
    gets the patched spec there, below its own loader. wrapt's finder is passed over, and its
    post-import hooks are called by the patched loader: a third hook that assigns to a method of
    the loader it is given would otherwise assign through wrapt's proxy, and recurse for ever.
    """

    def __init__(
        self, modules: Mapping[str, Rewritten], on_runtime_import: Callable[[], None]
    ) -> None:
        self.modules = modules
        self._on_runtime_import = on_runtime_import
        self._elsewhere: set[str] = set()
        self._thread = threading.local()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a patched spec for a module of the plan, nothing for any other."""
        if name == "sglang.srt" or name.startswith("sglang.srt."):
            self._on_runtime_import()
        if name not in self.modules or name in self._elsewhere:
            return None
        asked: dict[str, int] = self._thread.__dict__.setdefault("asked", {})
        done: set[str] = self._thread.__dict__.setdefault("done", set())
        depth = asked.get(name, 0)
        if depth > 1:
            return None
        asked[name] = depth + 1
        try:
            hooks = [f for f in sys.meta_path if type(f).__module__ == "wrapt.importer"]
            spec = find_elsewhere(name, path, target, skip=[self, *hooks])
        finally:
            asked[name] = depth
        if spec is None or spec.loader is None:
            return spec
        if depth == 0 and name in done:
            done.discard(name)
            return spec  # patched below the loader of the hook that asked again
        if depth > 0:
            done.add(name)
        return self._patched(spec, self.modules[name])

    def _patched(self, spec: ModuleSpec, rewritten: Rewritten) -> ModuleSpec | None:
        planned = rewritten.before.path
        if spec.origin is None or Path(spec.origin).resolve() != planned.resolve():
            log.logger().error(
                "%s is about to be loaded from %s, but the decision was made for %s: not patched",
                spec.name,
                spec.origin,
                planned,
            )
            self._elsewhere.add(spec.name)
            return None  # and leave it to the other finders
        # A loader by its methods, not by its base class.
        spec.loader = cast("Loader", PatchedLoader(spec.loader, rewritten))
        return spec


class PatchedLoader:
    """Runs the edited text of one module; for all else, it is the loader it stands in for.

    Compiling is left to that loader where it knows how, so that hooks which change code while it
    is compiled work on the edited text. Nothing is read from, or written to, byte-code files.
    """

    def __init__(self, inner: Any, rewritten: Rewritten) -> None:
        self._inner = inner
        self._rewritten = rewritten
        self._file = f"{rewritten.before.path}{_SUFFIX}"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as the genuine loader does."""
        create = getattr(self._inner, "create_module", None)
        module: ModuleType | None = None if create is None else create(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run the edited text in ``module``."""
        self._warn_if_changed()
        code = self.get_code(module.__name__)
        self._show_in_linecache()
        module.__dict__[MARK] = self._rewritten.patches
        exec(code, module.__dict__)  # noqa: S102 - this is what a loader does
        notify_module_loaded(module)

    def get_code(self, _name: str) -> CodeType:
        """Compile the edited text, under a file name that says so."""
        data = self._rewritten.after.raw
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            compiler = getattr(self._inner, "source_to_code", None)
            if compiler is None:
                return compile(data, self._file, "exec", dont_inherit=True)
            code: CodeType = compiler(data, self._file)
            return code

    def get_source(self, _name: str) -> str:
        """Return the edited text, with line feeds as line ends."""
        return "".join(self._lines())

    def _lines(self) -> list[str]:
        lines = self._rewritten.after.lines
        return [
            line.rstrip("\r\n") + "\n" if line.endswith(("\r", "\n")) else line for line in lines
        ]

    def _show_in_linecache(self) -> None:
        """Show the edited text wherever source is looked up by file name.

        Classes are looked up under the module's own file name, functions under that of their code.
        An entry without a modification time is not compared with the disk.
        """
        lines = self._lines()
        size = sum(map(len, lines))
        for name in (self._file, str(self._rewritten.before.path)):
            linecache.cache[name] = (size, None, lines, name)

    def _warn_if_changed(self) -> None:
        before = self._rewritten.before
        try:
            changed = before.path.read_bytes() != before.raw
        except OSError:
            changed = True
        if changed:
            log.logger().warning(
                "%s changed on disk after this process decided about its patches; what runs is "
                "the text it held then. Restart to use the new one",
                before.path,
            )
