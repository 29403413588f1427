"""The small model and its data, and the command line as a function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
from tests.study._small import make_plan, small_data, small_model

from evenkeel.cli import main

__all__ = ["evenkeel", "make_plan", "small_data", "small_model"]


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def evenkeel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Call the command line in this process."""

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["evenkeel", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        caught = capsys.readouterr()
        return Said(code, caught.out, caught.err)

    return call
