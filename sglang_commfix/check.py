"""Whether data has the shape that one of our TypedDicts gives it: a lock, an entry, fingerprints.

A server loads this for a user's own lock alone, or with the engine.
"""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin, get_type_hints, is_typeddict


def misshapen(value: Any, wanted: Any, where: str = "") -> str | None:
    """Say what is wrong with ``value``, and where in it; ``None``: it is as ``wanted`` says.

    Args:
        value: what JSON or TOML has given.
        wanted: a type made of TypedDict, list, dict, Literal, unions and plain types.
        where: the key that holds ``value``; empty for the whole.

    """
    origin, arguments = get_origin(wanted), get_args(wanted)
    inside: list[tuple[str, Any, Any]] = []
    name = where or "it"
    if is_typeddict(wanted):
        hints = get_type_hints(wanted)
        if not isinstance(value, dict):
            return f"{name} is {value!r:.60}, which should be a table of {', '.join(hints)}"
        at = f"{where}: " if where else ""
        if missing := [key for key in hints if key in wanted.__required_keys__ - value.keys()]:
            return f"{at}{missing[0]!r} is missing"
        if unknown := sorted(value.keys() - hints.keys()):
            return f"{at}{unknown[0]!r} is unknown; there may be {', '.join(hints)}"
        inside = [(f"{at}{key}", value[key], hint) for key, hint in hints.items() if key in value]
    elif origin in {list, dict}:
        if not isinstance(value, origin):
            return f"{name} is {value!r:.60}, which should be a {origin.__name__}"
        items: Any = value.items() if origin is dict else enumerate(value)
        inside = [(f"{where}[{key!r}]", item, arguments[-1]) for key, item in items]
    elif origin is Literal:
        if value not in arguments:
            return f"{name} is {value!r:.60}, which is none of {', '.join(map(str, arguments))}"
    elif type(value) not in (arguments or {wanted}):
        kinds = [kind.__name__.replace("NoneType", "null") for kind in arguments or (wanted,)]
        return f"{name} is {value!r:.60}, which should be {' or '.join(kinds)}"
    faults = (misshapen(item, hint, key) for key, item, hint in inside)
    return next(filter(None, faults), None)
