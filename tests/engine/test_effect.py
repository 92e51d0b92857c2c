"""What a file binds anew: an edit of code that its name does not lead to is refused.

Where the file does not show it, the guard says `apply`, and it is for the process to find.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from rig.stand_in import FAULTY, MODULE, Upstream, dedented, edit, patch

from sglang_commfix.engine.guard import Finding, decide
from sglang_commfix.engine.register import Register


SCOPE = f"{MODULE}:LayerCommunicator.should_fuse"
METHOD, FUNCTION = "1-guard", "2-guard"
TEXT = (
    dedented(FAULTY).replace("return 1", "return LayerCommunicator")
    + """

def fuse_all(self, batch):
    size = batch.size
    return size > 0


def _vendor(self, batch):
    return False
"""
)

# What is put behind the module's last line: it leads the method's name elsewhere.
METHOD_LOST = {
    "assigned": "LayerCommunicator.should_fuse = _vendor",
    "annotated": "LayerCommunicator.should_fuse: object = _vendor",
    "setattr": "setattr(LayerCommunicator, 'should_fuse', _vendor)",
    "type.__setattr__": "type.__setattr__(LayerCommunicator, 'should_fuse', _vendor)",
    "deleted": "del LayerCommunicator.should_fuse",
    "delattr": "delattr(LayerCommunicator, 'should_fuse')",
    "under if": "if os.environ.get('VENDOR'):\n    LayerCommunicator.should_fuse = _vendor",
    "under try": """
        try:
            import vendor
        except ImportError:
            pass
        else:
            LayerCommunicator.should_fuse = vendor.should_fuse
        """,
    "in a function called at import": """
        def _install():
            def now():
                LayerCommunicator.should_fuse = _vendor
            now()
        _install()
        """,
    "in another class": """
        class Vendor:
            LayerCommunicator.should_fuse = _vendor
        """,
    "by another name": "C = LayerCommunicator\nC.should_fuse = _vendor",
    "by two other names": "C = LayerCommunicator\nD = C\nD.should_fuse = _vendor",
    "by another name in a function": """
        def _install(cls):
            cls.should_fuse = _vendor
        _install(LayerCommunicator)
        """,
    "as one of two targets": "other, LayerCommunicator.should_fuse = 1, _vendor",
    "in a loop over names": """
        for name in ["other", "should_fuse"]:
            setattr(LayerCommunicator, name, _vendor)
        """,
    "in a loop over a table": """
        TABLE = {"should_fuse": _vendor}
        for name, function in TABLE.items():
            setattr(LayerCommunicator, name, function)
        """,
    "by names that are not there": """
        import vendor
        for name in vendor.NAMES:
            setattr(LayerCommunicator, name, getattr(vendor, name))
        """,
    "by names that are not there, by the module": f"""
        import {MODULE} as me, vendor
        for name in vendor.NAMES:
            setattr(me.LayerCommunicator, name, None)
        """,
    "as the target of a loop": "for LayerCommunicator.should_fuse in [_vendor]:\n    pass",
    "as the target of with": "with open(os.devnull) as LayerCommunicator.should_fuse:\n    pass",
    "code": "LayerCommunicator.should_fuse.__code__ = _vendor.__code__",
    "code by another name": "C = LayerCommunicator\nC.should_fuse.__code__ = _vendor.__code__",
    "another class's method": """
        class Vendor:
            def should_fuse(self, batch):
                return False
        LayerCommunicator.should_fuse = Vendor.should_fuse
        """,
    "an import": """
        from vendor import should_fuse
        LayerCommunicator.should_fuse = should_fuse
        """,
    "the module by its name": f"""
        import {MODULE} as me
        me.LayerCommunicator.should_fuse = _vendor
        """,
    "a base that sees its subclasses": """
        class Base:
            def __init_subclass__(cls):
                cls.should_fuse = _vendor
        """,
    "a metaclass": """
        class Meta(type):
            def __new__(mcs, name, bases, namespace):
                namespace["should_fuse"] = _vendor
                return super().__new__(mcs, name, bases, namespace)
        """,
    # The class's name leads elsewhere.
    "the class is assigned": "LayerCommunicator = type('LayerCommunicator', (), {})",
    "the class is imported": "from vendor import LayerCommunicator",
    "the class is imported as": "import vendor as LayerCommunicator",
    "everything is imported": "from vendor import *",
    "the class is a loop's": "for LayerCommunicator in []:\n    pass",
    "the class is deleted": "del LayerCommunicator",
    "the class by globals": "globals()['LayerCommunicator'] = _vendor",
    "the class by the module": """
        import sys
        setattr(sys.modules[__name__], "LayerCommunicator", _vendor)
        """,
    "a subclass that does it otherwise": """
        class Vendor(LayerCommunicator):
            def should_fuse(self, batch):
                return False
        LayerCommunicator = Vendor
        """,
    "the class twice": "class LayerCommunicator:\n    pass",
    "a subclass of the same name": "class LayerCommunicator(LayerCommunicator):\n    pass",
    "the class again under if": "if os.sep:\n    class LayerCommunicator:\n        pass",
}
# The same, in the class behind the method.
CLASS_LOST = {
    "assigned": "should_fuse = _other",
    "lambda": "should_fuse = lambda self, batch: False",
    "deleted": "del should_fuse",
    "locals": "locals()['should_fuse'] = other",
    "loop": "for should_fuse in [1]:\n    pass",
    "imported": "from vendor import should_fuse",
    "walrus": "print(should_fuse := None)",
    "match": "match os.sep:\n    case should_fuse:\n        pass",
    "twice": "def should_fuse(self, batch):\n    return False",
    "twice under if": "if os.sep:\n    def should_fuse(self, batch):\n        return False",
    "twice under except": """
        try:
            os.sep
        except AttributeError:
            def should_fuse(self, batch):
                return False
        """,
    "of the object": "def __init__(self):\n    self.should_fuse = None",
    "of its class": "def __init__(self):\n    type(self).should_fuse = None",
}
FUNCTION_LOST = {
    "assigned": "fuse_all = _vendor",
    "chained": "a = fuse_all = _vendor",
    "unpacked": "a, *fuse_all = 1, _vendor",
    "deleted": "del fuse_all",
    "globals": "globals()['fuse_all'] = _vendor",
    "globals updated": "globals().update(fuse_all=_vendor)",
    "globals updated by a table": "globals().update({'fuse_all': _vendor})",
    "globals in a loop": "for name in ['fuse_all']:\n    globals()[name] = _vendor",
    "the module": "import sys\nsys.modules[__name__].fuse_all = _vendor",
    "the module by its name": f"import sys\nsetattr(sys.modules['{MODULE}'], 'fuse_all', _vendor)",
    "global": "def install():\n    global fuse_all\n    fuse_all = _vendor\ninstall()",
    "global import": "def install():\n    global fuse_all\n    from vendor import fuse_all",
    "imported": "from vendor import fuse_all",
    "imported as": "from vendor import other as fuse_all",
    "everything is imported": "from vendor import *",
    "under if": "if os.sep:\n    fuse_all = _vendor",
    "under except": "try:\n    1 / 0\nexcept ZeroDivisionError as fuse_all:\n    pass",
    "for": "for fuse_all in [_vendor]:\n    pass",
    "with": "with open(os.devnull) as fuse_all:\n    pass",
    "walrus": "if (fuse_all := _vendor):\n    pass",
    "match": "match [_vendor]:\n    case [fuse_all]:\n        pass",
    "code": "fuse_all.__code__ = _vendor.__code__",
    "twice": "def fuse_all(self, batch):\n    return False",
    "twice under try": "try:\n    def fuse_all(self, batch):\n        pass\nexcept OSError:\n    pass",
    "replaced by a class": "class fuse_all:\n    pass",
}

# The edited code runs: it is called by what its name leads to, or nothing is bound anew.
KEPT = {
    "compiled": "fuse_all = compiled(fuse_all)",
    "compiled, by other names": "make = compiled\nold = fuse_all\nfuse_all = make(old)",
    "a wrapper": """
        import functools
        def around(function):
            @functools.wraps(function)
            def wrapper(*args):
                return function(*args)
            return wrapper
        fuse_all = around(fuse_all)
        LayerCommunicator.should_fuse = around(LayerCommunicator.should_fuse)
        """,
    "a wrapper that holds the original": """
        import functools
        _original = LayerCommunicator.should_fuse
        @functools.wraps(_original)
        def _around(self, batch):
            return not _original(self, batch)
        LayerCommunicator.should_fuse = _around
        """,
    "a wrapper in a function": """
        def install():
            old = getattr(LayerCommunicator, "should_fuse")
            def around(self, batch):
                return old(self, batch)
            setattr(LayerCommunicator, "should_fuse", around)
        install()
        """,
    "a loop over wrappers": """
        for name in ["fuse_all"]:
            old = globals().get(name)
            globals()[name] = compiled(old)
        """,
    "compiled in a function": """
        def install():
            global fuse_all
            fuse_all = compiled(fuse_all)
        """,
    "a decorated class": "LayerCommunicator = decorated(LayerCommunicator)",
    "a subclass": "class V(LayerCommunicator):\n    pass\nLayerCommunicator = V",
    "a subclass that calls it": """
        class Vendor(LayerCommunicator):
            def should_fuse(self, batch):
                return not super().should_fuse(batch)
        LayerCommunicator = Vendor
        """,
    "a subclass of another name": """
        class Vendor(LayerCommunicator):
            def should_fuse(self, batch):
                return False
        """,
    "another class": """
        class Vendor:
            def __init__(self):
                self.should_fuse = self.fuse_all = None
        Vendor.should_fuse = Vendor.fuse_all = _vendor
        """,
    "another module": "import vendor\nvendor.fuse_all = fuse_all",
    "a local name": "def local(batch):\n    fuse_all = should_fuse = 1\n    return fuse_all",
    "only annotated": "fuse_all: object",
    "something else of it": "fuse_all.__doc__ = ''\nLayerCommunicator.should_fuse.vendor = 1",
    "other names": "for name in ['other']:\n    setattr(LayerCommunicator, name, _vendor)",
    "a table": "TABLE = {'fuse_all': fuse_all}\nTABLE['x'] = 'should_fuse'",
    "an unknown object": "def fill(one, **more):\n    for k, v in more.items():\n        setattr(one, k, v)",
    "called": "import vendor\nvendor.install(LayerCommunicator)",
    "executed": "exec(open('/dev/null').read())",
}
BEFORE = {
    "assigned": "fuse_all = None",
    "imported, maybe": "try:\n    from vendor import fuse_all\nexcept ImportError:\n    fuse_all = None",
    "declared": "LayerCommunicator: type\nfuse_all: object",
}


@pytest.fixture
def register(tmp_path: Path) -> Register:
    upstream = Upstream()
    upstream.releases |= {"1.1": {MODULE: TEXT}, "1.2": {MODULE: TEXT}}
    gone = {"module": MODULE, "unmentioned": ["fuse_all"], "why": "nothing is fused"}
    second = patch(FUNCTION, sound=[gone], edit=[edit(scope="fuse_all")])
    return upstream.register(tmp_path / "patches", patch(METHOD), second)


def found(register: Register, text: str, allow: tuple[str, ...] = ()) -> dict[str, Finding]:
    upstream = Upstream({"1.1": {MODULE: text}})
    compile(text, "f", "exec")
    return {one.patch.id: one for one in decide(register, upstream.tree("1.1"), allow)}


def below(text: str) -> str:
    return f"{TEXT}\n\n{dedented(text)}\n"


def in_class(text: str) -> str:
    lines = "".join(f"    {line}\n" for line in dedented(text).splitlines())
    return TEXT.replace("    def other(self)", f"{lines}\n    def other(self)")


@pytest.mark.parametrize("text", METHOD_LOST.values(), ids=METHOD_LOST)
def test_a_method_that_its_name_does_not_lead_to_is_refused(register: Register, text: str) -> None:
    finding = found(register, below(text))[METHOD]
    assert finding.verdict == "refused", finding.reason


@pytest.mark.parametrize("text", CLASS_LOST.values(), ids=CLASS_LOST)
def test_a_method_that_its_class_binds_anew_is_refused(register: Register, text: str) -> None:
    findings = found(register, in_class(text))
    assert findings[METHOD].verdict == "refused", findings[METHOD].reason
    assert findings[FUNCTION].verdict == "apply", findings[FUNCTION].reason


@pytest.mark.parametrize("text", FUNCTION_LOST.values(), ids=FUNCTION_LOST)
def test_a_function_that_its_name_does_not_lead_to_is_refused(
    register: Register, text: str
) -> None:
    finding = found(register, below(text))[FUNCTION]
    assert finding.verdict == "refused", finding.reason


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_where_the_edited_code_may_be_called_it_is_patched(register: Register, text: str) -> None:
    for finding in found(register, below(text)).values():
        assert finding.verdict == "apply", finding.reason


@pytest.mark.parametrize("text", BEFORE.values(), ids=BEFORE)
def test_what_is_bound_before_the_definition_does_not_count(register: Register, text: str) -> None:
    for finding in found(register, f"{text}\n{TEXT}").values():
        assert finding.verdict == "apply", finding.reason


def test_a_definition_in_another_branch_than_an_import_may_not_be_what_runs(
    register: Register,
) -> None:
    indented = TEXT.replace("\n", "\n    ")
    text = f"try:\n    from vendor import fuse_all\nexcept ImportError:\n    {indented}pass\n"
    findings = found(register, text)
    assert findings[FUNCTION].verdict == "refused"
    assert findings[METHOD].verdict == "apply", findings[METHOD].reason


def test_a_method_in_the_class_may_be_wrapped_there(register: Register) -> None:
    for text in ("should_fuse = staticmethod(should_fuse)", "should_fuse: object"):
        finding = found(register, in_class(text))[METHOD]
        assert finding.verdict == "apply", finding.reason


def test_the_reason_names_the_line_and_what_to_do(register: Register) -> None:
    text = below("\nLayerCommunicator.should_fuse = _vendor")
    line = text.splitlines().index("LayerCommunicator.should_fuse = _vendor") + 1
    reason = found(register, text)[METHOD].reason
    assert reason.startswith(f"line {line} may bind {SCOPE} to code that no edit reaches")
    assert "sglang-commfix lock --allow 1-guard" in reason


def test_its_owner_may_let_it_through(register: Register) -> None:
    text = below("fuse_all = _vendor")
    assert found(register, text, (FUNCTION,))[FUNCTION].verdict == "apply"


def test_a_fix_that_its_name_does_not_lead_to_is_none(register: Register) -> None:
    from rig.stand_in import FIXED

    fixed = dedented(FIXED)
    assert found(register, fixed)[METHOD].verdict == "not-needed"
    lost = f"{fixed}\nLayerCommunicator.should_fuse = _vendor\n"
    assert found(register, lost)[METHOD].verdict == "refused"


def test_what_a_release_binds_anew_is_known(tmp_path: Path) -> None:
    """sglang 0.5.1 to 0.5.7 take vllm's RMSNorm on hardware that they do not know."""
    text = below("if not os.sep:\n    from vendor import fuse_all")
    upstream = Upstream()
    upstream.releases |= {"1.1": {MODULE: text}, "1.2": {MODULE: text}}
    gone = {"module": MODULE, "unmentioned": ["fuse_all"], "why": "nothing is fused"}
    second = patch(FUNCTION, sound=[gone], edit=[edit(scope="fuse_all")])
    register = upstream.register(tmp_path / "patches", second)
    for known in (text, text.replace("if not os.sep", "if os.sep or os.altsep")):
        assert found(register, known)[FUNCTION].verdict == "apply"
    assert found(register, below("from vendor import fuse_all"))[FUNCTION].verdict == "refused"
    assert found(register, text.replace("vendor import", "x import"))[FUNCTION].verdict == "refused"


def test_an_entry_is_not_made_without_the_edit_that_has_no_effect(tmp_path: Path) -> None:
    """Although a release of the range takes the other edit alone."""
    upstream = Upstream()
    upstream.releases |= {"1.1": {MODULE: TEXT}, "1.2": {MODULE: TEXT}}
    both = [edit(), edit(scope="fuse_all", releases=">=1.1,<1.2")]
    register = upstream.register(tmp_path / "patches", patch(METHOD, edit=both))
    assert found(register, TEXT)[METHOD].verdict == "apply"
    assert found(register, below("fuse_all = _vendor"))[METHOD].verdict == "refused"
