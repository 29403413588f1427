from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from evenkeel.study import _provenance
from evenkeel.study._provenance import checkout, provenance


@pytest.fixture(autouse=True)
def _look_again() -> None:
    checkout.cache_clear()


def git(root: Path, *arguments: str) -> str:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, "-C", str(root), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a repository of its own."""
    package = tmp_path / "src" / "evenkeel"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return package


def test_a_checkout_tells_its_commit(package: Path, tmp_path: Path) -> None:
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert checkout(package) == {"commit": commit, "dirty": False}
    (tmp_path / "notes.txt").touch()  # no source
    checkout.cache_clear()
    assert checkout(package) == {"commit": commit, "dirty": False}
    (package / "new.py").touch()
    checkout.cache_clear()
    assert checkout(package) == {"commit": commit, "dirty": True}


def test_an_installed_package_tells_no_commit(package: Path, tmp_path: Path) -> None:
    installed = tmp_path / "venv" / "evenkeel"  # in somebody else's repository
    installed.mkdir(parents=True)
    assert checkout(installed) == {}


def test_without_git_there_is_no_commit(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_provenance.shutil, "which", lambda _: None)
    assert checkout(package) == {}


def test_a_repository_that_git_refuses_tells_no_commit(package: Path, tmp_path: Path) -> None:
    (tmp_path / ".git" / "HEAD").write_text("nonsense", encoding="utf-8")
    assert checkout(package) == {}


def test_what_a_run_was_made_with_is_said() -> None:
    made_with = provenance(torch.device("cpu"))
    assert {"versions", "python", "device", "threads"} <= set(made_with)
    assert set(made_with) <= {"versions", "python", "device", "threads", "commit", "dirty"}
    assert {"evenkeel", "torch", "transformers"} <= set(made_with["versions"])
