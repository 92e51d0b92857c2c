"""What runs inside the processes that ``plan.py`` measures: ``inside.py TASK TREE WHAT …``.

The first lines import nothing that the interpreter does not have: what a plan imports is part of
its cost.
"""

from __future__ import annotations

import sys
import time


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType
    from typing import Any

# Of the standard library, what sglang/srt/utils/common.py and torch import in any case.
ANYWAY = ["asyncio", "dataclasses", "hashlib", "importlib.metadata", "inspect", "json", "logging"]
ANYWAY += ["pathlib", "re", "tempfile", "threading", "typing", "zlib"]
CALLS = 100_000
Code = tuple[str, bytes, tuple[str, ...], list[object]]


def plan(what: str, imported: str) -> None:
    """Print the seconds that a plan takes, and how many patches it applies.

    Args:
        what: engine, lock: who decides. wrapt: its import alone, which is part of every
            plan. nothing: all but the plan, for counts.
        imported: warm, if what sglang imports in any case is there already.

    """
    if imported == "warm":
        for name in ANYWAY:
            __import__(name)
    start = time.perf_counter()
    if what == "nothing":
        return
    if what == "wrapt":
        __import__("wrapt")
        print(time.perf_counter() - start)
        return
    made = make_plan()
    seconds = time.perf_counter() - start
    if (what == "engine") != ("sglang_commfix.engine" in sys.modules):
        raise SystemExit(f"this was to be decided by the {what}, and was not")
    print(seconds, len(made.having("apply")))


def make_plan() -> Any:
    """Decide what runs, as a server does."""
    session: Any = __import__("sglang_commfix.run.session", fromlist=["session"])
    return session.make_plan(session.find_sglang(), session.read_settings())


def measure(cases: dict[str, Callable[[], object]], what: str, times: int = 1) -> None:
    """Print the seconds of every case, the second time that it runs; or just run ``what``."""
    if what in cases:
        cases[what]()
    for name, case in cases.items() if what == "times" else ():
        case()
        start = time.perf_counter()
        case()
        print(name, (time.perf_counter() - start) / times)


def loading(what: str) -> None:
    """Make the code of every edited module: of the edited text, of the genuine one, from .pyc."""
    made, plain, patched = loaders()
    genuine = [(loader, made.modules[name]) for name, loader in plain.items()]
    measure(
        {
            "edited": lambda: [loader.get_code(name) for name, loader in patched.items()],
            "genuine": lambda: [
                loader.source_to_code(module.before, str(module.path)) for loader, module in genuine
            ],
            "pyc": lambda: [loader.get_code(name) for name, loader in plain.items()],
        },
        what,
    )


def loaders() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return a plan, and for each module of it Python's loader and this package's."""
    from importlib.machinery import SourceFileLoader

    from sglang_commfix.run.loader import PatchedLoader

    made = make_plan()
    plain = {name: SourceFileLoader(name, str(one.path)) for name, one in made.modules.items()}
    patched = {name: PatchedLoader(plain[name], one) for name, one in made.modules.items()}
    return made, dict(plain), dict(patched)


def calling(what: str) -> None:
    """Call a patched method: as in the genuine file, as if edited on disk, as patched here.

    The code objects are what the loaders make of the whole module. What they call is stubs, which
    answer as in decode: no reduce-scatterv, MAX_LEN padding.
    """
    from types import FunctionType, SimpleNamespace

    class Pair:
        _scatter_hidden_states = object()

    names = {
        "CommunicateSummableTensorPairFn": Pair,
        "should_use_dp_reduce_scatterv": lambda: False,
        "nsa_use_prefill_cp": lambda _batch: False,
    }
    layer = SimpleNamespace(allow_reduce_scatter=True)
    layer._communicate_summable_tensor_pair_fn = Pair._scatter_hidden_states  # noqa: SLF001
    batch = SimpleNamespace(dp_padding_mode=SimpleNamespace(is_max_len=lambda: True))

    def caller(code: CodeType) -> Callable[[], None]:
        method = FunctionType(dig(code, "LayerCommunicator", "should_use_reduce_scatter"), names)

        def call() -> None:
            for _ in range(CALLS):
                method(layer, batch)

        return call

    codes = code_objects()
    measure(
        {which: caller(own["sglang.srt.layers.communicator"]) for which, own in codes.items()},
        what,
        CALLS,
    )
    if what == "equal":
        genuine, disk, patched = (
            {name: list(flat(code)) for name, code in own.items()} for own in codes.values()
        )
        print(sum(map(len, patched.values())), int(disk == patched))
        print(sum(one not in genuine[name] for name in patched for one in patched[name]))


def code_objects() -> dict[str, dict[str, CodeType]]:
    """Return the code of every edited module: genuine, edited on disk, patched."""
    import tempfile
    from pathlib import Path

    made, plain, patched = loaders()
    codes: dict[str, dict[str, CodeType]] = {"genuine": {}, "disk": {}, "patched": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, module in made.modules.items():
            file = Path(folder, f"{name}.py")
            file.write_bytes(module.after)
            codes["genuine"][name] = plain[name].get_code(name)
            codes["disk"][name] = type(plain[name])(name, str(file)).get_code(name)
            codes["patched"][name] = patched[name].get_code(name)
    return codes


def dig(code: CodeType, *names: str) -> CodeType:
    """Return the code of a function inside a class inside a module."""
    for name in names:
        code = next(one for one in code.co_consts if getattr(one, "co_name", None) == name)
    return code


def flat(code: CodeType, prefix: str = "") -> Iterator[Code]:
    """Yield a code object and all inside it, each as what it does: no file, no line numbers."""
    inner = [one for one in code.co_consts if hasattr(one, "co_code")]
    constants = [one for one in code.co_consts if not hasattr(one, "co_code")]
    yield prefix, code.co_code, (*code.co_names, *code.co_varnames), constants
    for one in inner:
        yield from flat(one, f"{prefix}.{one.co_name}")


if __name__ == "__main__":
    task, tree, *rest = sys.argv[1:]
    sys.path[0] = tree
    tasks: dict[str, Callable[..., None]]
    tasks = {"plan": plan, "loading": loading, "calling": calling}
    tasks[task](*rest)
