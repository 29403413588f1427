from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import evenkeel as package
from evenkeel import study

COMMANDS = ("demo", "study", "status", "report", "compare", "pack", "finetune", "calibrate", "components", "methods")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(evenkeel: Callable[..., Any], command: str) -> None:
    said = evenkeel(command, "--help")
    assert said.code == 0
    assert re.search(rf"Usage: .*evenkeel {command}\b", said.out)


def test_help_loads_nothing_heavy() -> None:
    code = f"""
import sys
from evenkeel.cli import main
for command in {COMMANDS}:
    sys.argv = ["evenkeel", command, "--help"]
    try:
        main()
    except SystemExit as end:
        assert not end.code
print("loaded:", [name for name in ("torch", "transformers", "datasets", "plotly") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_the_help_names_every_command(evenkeel: Callable[..., Any]) -> None:
    said = evenkeel("--help")
    assert said.code == 0
    assert [command for command in COMMANDS if command not in said.out] == []


def test_the_version_is_shown(evenkeel: Callable[..., Any]) -> None:
    assert evenkeel("--version") == (0, f"evenkeel {package.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["studdy"], "No such command 'studdy'"),
        (["study", "--task", "rte"], "Missing option '--out'"),
        (["study", "--out", "x", "--task", "rte", "--batch-size", "many"], "'--batch-size'"),
        (["study", "--out", "x", "--sedes", "3"], "No such option: --sedes"),
        (["status"], "Missing argument"),
        (["demo", "--seeds", "0"], "Invalid value for '--seeds'"),
    ],
)
def test_usage_errors_exit_with_2(evenkeel: Callable[..., Any], arguments: list[str], said: str) -> None:
    found = evenkeel(*arguments)
    assert found.code == 2
    assert said in " ".join(found.err.replace("│", " ").split())


def test_an_error_is_a_message_of_its_own_words(evenkeel: Callable[..., Any]) -> None:
    said = evenkeel("status", "no [bold]such[/bold] folder")  # brackets are no markup here
    assert said.code == 2
    assert said.out == ""
    assert said.err == "error: 'no [bold]such[/bold] folder' holds no study; give the folder that was named by --out\n"


def test_a_bug_keeps_its_traceback(evenkeel: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(study, "open_study", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        evenkeel("status", "anything")


def test_the_package_can_be_run_as_a_module() -> None:
    command = [sys.executable, "-m", "evenkeel", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("evenkeel ")
