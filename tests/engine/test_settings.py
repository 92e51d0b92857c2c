from __future__ import annotations

from pathlib import Path

import pytest
from rig.stand_in import Upstream, edit, patch

from sglang_commfix.engine.make_lock import entry_of
from sglang_commfix.engine.register import Register
from sglang_commfix.errors import SettingsError
from sglang_commfix.lock import Decision
from sglang_commfix.run.host import read_settings
from sglang_commfix.run.plan import parse_selection


def entries(register: Register) -> list[Decision]:
    return [entry_of(patch) for patch in register.patches]


@pytest.fixture
def register(tmp_path: Path, upstream: Upstream) -> Register:
    where = [edit(scope="LayerCommunicator.other", find="return 1", before="pass")]
    return upstream.register(
        tmp_path / "patches",
        patch("1-right", kind="correctness"),
        patch("1-steady", kind="stability"),
        patch("2-fast", kind="performance", edit=where),
        patch("3-new", kind="feature", edit=where, requires=["2-fast"]),
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", ""),
        ("0", ""),
        (" OFF ", ""),
        (",", ""),
        ("1", "1-right 1-steady"),
        ("on", "1-right 1-steady"),
        ("ON,", "1-right 1-steady"),
        ("all", "1-right 1-steady 2-fast 3-new"),
        ("2", "2-fast"),
        ("#2", "2-fast"),
        ("2-FAST", "2-fast"),
        ("1-right, 2", "1-right 2-fast"),
        ("all,-1", "2-fast 3-new"),
        ("-1-steady", "1-right"),
        ("-1-steady,all", "1-right 2-fast 3-new"),
        ("on,2", "1-right 1-steady 2-fast"),
        ("3", "2-fast 3-new"),
        ("3,-2", "3-new"),
    ],
)
def test_words_select_patches(register: Register, value: str, expected: str) -> None:
    assert parse_selection(value, entries(register))[0] == set(expected.split())


@pytest.mark.parametrize(
    "value", ["maybe", "24785", "1-right;2", "-", "off,1", "0,all", "1,2-slow", "--1"]
)
def test_an_unknown_word_is_named_beside_the_known_ones(register: Register, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_selection(value, entries(register))
    message = str(caught.value)
    assert message.startswith(f"SGLANG_COMMFIX={value!r}: ")
    assert "Known are: 0, off, 1, on, all, 1-right, 1-steady, 2-fast, 3-new, 1, 2, 3" in message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SGLANG_COMMFIX_STRICT", "maybe", "is neither 0 or off nor 1 or on"),
        ("SGLANG_COMMFIX_ALLOW_UNKNOWN", "1-right", "is not read any more.*lock --allow 1-right"),
        ("SGLANG_COMMFIX_LOG", "loud", "is none of DEBUG, INFO, WARNING"),
    ],
)
def test_every_other_variable_is_checked_too(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}='{value}'.*{message}"):
        read_settings({name: value}, "1")


def test_variables_are_read_with_their_defaults() -> None:
    settings = read_settings({})
    assert settings.select == ""
    assert not settings.strict
    assert settings.lock == ""
    assert settings.level == ""
    settings = read_settings(
        {
            "SGLANG_COMMFIX": " 1 ",
            "SGLANG_COMMFIX_STRICT": "On",
            "SGLANG_COMMFIX_LOCK": " /etc/lock.json ",
            "SGLANG_COMMFIX_LOG": "debug",
        },
    )
    assert settings.select == "1"
    assert settings.strict
    assert settings.lock == "/etc/lock.json"
    assert settings.level == "DEBUG"


@pytest.mark.parametrize("value", ["1", "on", "ON", "true", "Yes"])
def test_on_may_be_said_as_people_say_it(register: Register, value: str) -> None:
    assert parse_selection(value, entries(register))[0] == {"1-right", "1-steady"}
    assert read_settings({"SGLANG_COMMFIX_STRICT": value}).strict


@pytest.mark.parametrize("value", ["0", "off", "False", "no", " "])
def test_off_may_be_said_as_people_say_it(register: Register, value: str) -> None:
    assert parse_selection(value, entries(register)) == (set(), set())
    assert not read_settings({"SGLANG_COMMFIX_STRICT": value}).strict


@pytest.mark.parametrize("word", ["0", "off", "false", "no"])
def test_what_switches_all_off_is_known_and_stands_alone(register: Register, word: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_selection(f"1,{word}", entries(register))
    message = f"SGLANG_COMMFIX='1,{word}': {word!r} switches all off, and stands alone. Known are"
    assert str(caught.value).startswith(message)
