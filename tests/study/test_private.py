from __future__ import annotations

from pathlib import Path

import pytest

from evenkeel.study._private import private, private_traceback


@pytest.fixture(autouse=True)
def _somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/zelda")
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "zelda")
    monkeypatch.setenv("SOME_API_KEY", "abcdef123456")
    monkeypatch.setenv("LONGER_TOKEN", "abcdef123456789")
    monkeypatch.setenv("SHORT_TOKEN", "the")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no file '/home/zelda/data/a.csv'", "no file '~/data/a.csv'"),
        ("/home/zelda", "~"),
        ("/home/zeldas/x and /scratch/zelda/x", "/home/zeldas/x and /scratch/<user>/x"),
        ("C:\\Users\\zelda\\x", "C:\\Users\\<user>\\x"),
        ("zelda is a name", "zelda is a name"),  # and no path
        ("401 for abcdef123456789, abcdef123456", "401 for ***, ***"),
        ("the word stays", "the word stays"),
    ],
)
def test_what_is_the_owners_stays_with_the_owner(text: str, said: str) -> None:
    assert private(text) == said


def test_without_a_home_or_a_name_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    assert private("/home/zelda/x") == "/home/zelda/x"


def fail() -> None:
    raise ValueError("/home/zelda/x is wrong")


def test_a_traceback_names_files_inside_of_their_packages() -> None:
    import json

    try:
        try:
            json.loads("{")
        except ValueError as cause:
            try:
                fail()
            except ValueError as error:
                raise RuntimeError("no use") from ExceptionGroup("several", [cause, error])
    except RuntimeError as error:
        said = private_traceback(error)
    assert said.splitlines()[-1] == "RuntimeError: no use"
    assert 'File "test_private.py"' in said
    assert 'File "json/__init__.py"' in said
    assert "ValueError: ~/x is wrong" in said
    assert str(Path(__file__).parent) not in said
    assert "/home/zelda" not in said
