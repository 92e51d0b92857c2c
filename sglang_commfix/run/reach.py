"""What runs under an edited scope's name, and whether it is, or leads to, the edited code."""

from __future__ import annotations

import gc
from collections import deque
from types import CodeType, FunctionType, ModuleType
from typing import Any


LIMIT = 10_000  # objects that are looked at for one name
_CODE = (FunctionType, staticmethod, classmethod, property)
_FUNCTION = 1  # inspect.CO_OPTIMIZED: the code is not that of a class body
Lines = dict[str, set[tuple[str, int]]]  # of a scope: the functions that it may name


def lines_of(code: CodeType, scopes: tuple[str, ...]) -> Lines:
    """Return name and first line of each function in ``code`` that one of ``scopes`` names.

    A class stands for the functions in its body. The module itself is not among ``scopes``.
    """
    found = {}
    for scope in scopes:
        named = [code]
        for part in scope.split("."):
            named = [one for outer in named for one in _inside(outer) if one.co_name == part]
        classes = [one for one in named if not one.co_flags & _FUNCTION]
        functions = [f for one in classes for f in _inside(one)] if classes else named
        found[scope] = {(one.co_name, one.co_firstlineno) for one in functions}
    return found


def _inside(code: CodeType) -> list[CodeType]:
    return [one for one in code.co_consts if isinstance(one, CodeType)]


def stray(module: ModuleType, file: str, wanted: Lines) -> str | None:
    """Return what runs in place of edited code, in words; ``None``: all of it can be reached.

    It looks through whatever holds the edited function: closures, defaults, attributes, constants,
    the globals that a function names, partial objects and other callables, and operators that
    PyTorch has registered under the function's name. A name that is not bound, as under a condition
    that is not met here, is no error.

    Args:
        module: the module that was edited.
        file: the name under which its edited text was compiled.
        wanted: its scopes, as :func:`lines_of` has them.

    """
    for scope, lines in wanted.items():
        found: Any = module
        bodies: tuple[Any, ...] = (module,)
        missing = False
        for part in scope.split("."):
            bodies = getattr(found, "__mro__", (found,))
            there = [body for body in bodies if part in getattr(body, "__dict__", ())]
            if missing := not there:
                break
            found = vars(there[0])[part]
        if missing and module.__name__ in {
            getattr(found, w, 0) for w in ("__name__", "__module__")
        }:
            continue
        roots = [found]
        if isinstance(found, type):
            roots, bodies = [v for v in vars(found).values() if isinstance(v, _CODE)], found.__mro__
        if lines and roots and not _reaches(roots, bodies, file, lines):
            return f"{scope} is {_words(found)}, which neither is nor calls the edited code"
    return None


def _reaches(
    roots: list[Any], bodies: tuple[Any, ...], file: str, lines: set[tuple[str, int]]
) -> bool:
    names = {name for name, _ in lines}
    seen: dict[int, Any] = {}  # holds each object, so that no other takes its id
    queue = deque(roots)
    while queue and len(seen) < LIMIT:
        one = queue.popleft()
        if id(one) in seen or isinstance(one, type | ModuleType | str | bytes | int):
            continue
        seen[id(one)] = one
        if type(one) is not FunctionType:
            if type(one).__module__.startswith("torch.") and getattr(one, "__name__", "") in names:
                return True
            queue += gc.get_referents(one)
            continue
        here = one.__code__
        if here.co_filename == file and (here.co_name, here.co_firstlineno) in lines:
            return True
        codes = [here]
        for code in codes:
            codes += _inside(code)
        words = {word for code in codes for word in code.co_names}
        for known in (one.__globals__, *map(vars, bodies)):
            queue += [known[word] for word in words if word in known]
        # What a wrapper says it wraps, it need not call: sglang's plug-ins may replace a function.
        own = [value for key, value in vars(one).items() if key != "__wrapped__" or key in words]
        queue += [one.__closure__, one.__defaults__, one.__kwdefaults__, own]
        queue += [code.co_consts for code in codes]  # ddtrace keeps the original there
    return False


def _words(found: Any) -> str:
    """Say what stands under a name, and who has put it there."""
    code = getattr(getattr(found, "__func__", found), "__code__", None)
    where = f" ({code.co_filename}, line {code.co_firstlineno})" if code else ""
    kind = type(found)
    name = getattr(found, "__qualname__", f"an object of {kind.__qualname__}")
    return f"{getattr(found, '__module__', kind.__module__)}.{name}{where}"
