"""The loader of a patched module."""

import inspect
import linecache
import warnings
from importlib.util import decode_source
from io import StringIO
from types import CodeType, ModuleType
from typing import Any

from wrapt import notify_module_loaded

from sglang_commfix.run.reach import Lines, lines_of


MARK = "__commfix__"  # in a patched module: the ids of its patches
COMPILED: dict[str, Lines] = {}  # of each module: what its edited scopes name


class Cache(dict[str, Any]):
    """What ``linecache`` has read. It keeps the edited text, which stands in no file."""

    def clear(self) -> None:
        """Forget what can be read again."""
        kept = {key: entry for key, entry in self.items() if str(entry[-1]).endswith("[commfix]")}
        super().clear()
        self.update(kept)


class TellingLoader:
    """Tells wrapt's hooks that a module is loaded; for all else, the loader it stands in for.

    wrapt's own is a proxy: who assigns to its ``exec_module`` has that call itself for ever.
    """

    def __init__(self, inner: Any, module: Any = None) -> None:
        self._inner, self._module = inner, module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module as the loader beneath does."""
        self._inner.exec_module(module)
        notify_module_loaded(module)


class PatchedLoader(TellingLoader):
    """Runs the edited text of one module of the plan."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the edited text in ``module``. No byte-code file is read or written."""
        code = self.get_code(module.__name__)
        # Classes are looked up by the module's file name. Without a time, no look at the disk.
        lines = StringIO(self.get_source(module.__name__)).readlines()
        entry = (len(self._module.after), None, lines, self._module.runs_as)
        names = (self._module.runs_as, str(self._module.path))
        linecache.cache = Cache(linecache.cache | dict.fromkeys(names, entry))
        inspect.modulesbyfile[self._module.runs_as] = module.__name__  # for who has a frame of it
        module.__dict__[MARK] = self._module.patches
        exec(code, module.__dict__)  # noqa: S102 - this is what a loader does
        notify_module_loaded(module)

    def get_code(self, name: str) -> CodeType:
        """Compile the edited text, as the loader beneath does, under a name that says so."""
        default = lambda data, file: compile(data, file, "exec", dont_inherit=True)  # noqa: E731
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            compiler = getattr(self._inner, "source_to_code", default)
            code: CodeType = compiler(self._module.after, self._module.runs_as)
        COMPILED[name] = lines_of(code, self._module.scopes)
        return code

    def get_source(self, _name: str) -> str:
        """Return the edited text, with line feeds as line ends."""
        return decode_source(self._module.after)
