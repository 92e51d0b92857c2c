"""Upstream communication fixes for an installed sglang, applied while sglang is imported.

Every Python start runs this file, by ``sglang_commfix.pth``. It imports what the interpreter has
loaded by then. The rest waits until sglang itself is imported with ``SGLANG_COMMFIX`` set.
"""

import os
import sys


TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

    from sglang_commfix.command.report import Report, status
    from sglang_commfix.run.embed import activate
    from sglang_commfix.run.session import Session

__version__ = "0.1.0"
__all__ = ["Report", "__version__", "activate", "init", "status"]

SELECT = "SGLANG_COMMFIX"
OFF = frozenset({"", "0", "off", "false", "no"})
_LAZY = {"Report": "command.report", "activate": "run.embed", "status": "command.report"}


def is_off(name: str) -> bool:
    """Tell whether a variable is not set, or switches off what it is for."""
    return os.environ.get(name, "").strip().lower() in OFF


class StartupFinder:
    """Wait on ``sys.meta_path`` for the first import of sglang, then hand over to the session.

    It never leaves the list, which would make an import under way skip the next finder.
    """

    closed = loading = False
    session: "Session | None" = None

    def find_spec(self, name: str, path: object = None, *target: object) -> "ModuleSpec | None":
        """Start the session when sglang is first imported with the variable set.

        A finder in front may answer for sglang itself: whatever is imported next comes by here.
        """
        own = name == "sglang" or name.startswith("sglang.")
        if own and self.session and self.session not in sys.meta_path:  # a host has set it back
            return self.session.find_spec(name, path, *target)
        if self.closed or not (own or ("sglang" in sys.modules and not self.loading)):
            return None
        if is_off(SELECT):
            return None
        self.loading = True  # and with it what the session itself imports
        try:
            from sglang_commfix.run import session
        except Exception as error:
            try:
                from sglang_commfix.damage import told

                what = told(error)
            except Exception:  # noqa: BLE001 - that file may be cut short as well
                what = f"the installation is damaged ({type(error).__name__}: {error}): reinstall"
            sys.stderr.write(f"sglang-commfix: {what}. Nothing is applied\n")
            if not is_off(f"{SELECT}_STRICT"):
                raise SystemExit(78) from error
            self.closed = True
            return None
        # sglang's plug-ins may just have begun to import it; what it imports comes by here.
        finder = getattr(session, "start", lambda: None)()
        return None if finder is None else finder.find_spec(name, path, *target)


# A host may have forgotten this module, and imports it anew: then the one that waits is there.
_waiting = [finder for finder in sys.meta_path if type(finder).__module__ == __name__]
FINDER: StartupFinder = _waiting[0] if _waiting else StartupFinder()  # type: ignore[assignment]


def init() -> None:
    """Put the start-up finder in place. ``sglang_commfix.pth`` may run this twice in a process."""
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'sglang_commfix' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"sglang_commfix.{_LAZY[name]}"), name)
