"""The house itself: what loads what, which names exist, and whether packaging and papers agree with the code."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import evenkeel

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "evenkeel"
FILES = sorted(SOURCE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = [name for name in map(module_name, FILES) if not name.endswith("__main__")]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# --- what loads what


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import evenkeel; dir(evenkeel); evenkeel.__version__", ["torch", "transformers", "numpy"]),
        ("import evenkeel.stats", ["torch", "transformers", "datasets", "pandas"]),
        ("import evenkeel.cli; sys.argv = ['evenkeel', '--help']; evenkeel.cli.main()", ["torch", "transformers"]),
        ("import evenkeel.tasks.grammar", ["torch", "transformers"]),
    ],
    ids=["import", "stats", "help", "grammar"],
)
def test_heavy_packages_stay_out(statement: str, absent: list[str]) -> None:
    code = f"import atexit, sys; atexit.register(lambda: print('loaded:', [m for m in {absent} if m in sys.modules]))\n"
    done = subprocess.run([sys.executable, "-c", code + statement], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


# --- names


@pytest.mark.parametrize("module", MODULES)
def test_every_name_in_all_exists_once(module: str) -> None:
    names = getattr(importlib.import_module(module), "__all__", [])
    missing = [name for name in names if not hasattr(importlib.import_module(module), name)]
    assert missing == []
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("module", [name for name in MODULES if (SOURCE.parent / name.replace(".", "/")).is_dir()])
def test_a_package_can_be_star_imported(module: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"from {module} import *", namespace)  # noqa: S102  the module names are ours
    assert set(getattr(importlib.import_module(module), "__all__", [])) <= set(namespace)


def test_the_walk_over_files_sees_what_python_sees() -> None:
    found = {info.name for info in pkgutil.walk_packages(evenkeel.__path__, "evenkeel.") if "__main__" not in info.name}
    assert found | {"evenkeel"} == set(MODULES)


def room_inits() -> list[Path]:
    return [path for path in FILES if path.name == "__init__.py" and path.parent != SOURCE]


@pytest.mark.parametrize("path", room_inits(), ids=module_name)
def test_a_package_hands_out_names_and_does_nothing_else(path: Path) -> None:
    first, *rest = ast.parse(path.read_text(encoding="utf-8")).body
    assert isinstance(first, ast.Expr)  # the docstring
    others = [node.lineno for node in rest if not isinstance(node, ast.Import | ast.ImportFrom) and not is_all(node)]
    assert others == []


def is_all(node: ast.stmt) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets)


def foreign_private_imports(module: str, tree: ast.AST) -> Iterator[str]:
    """Yield each imported name with an underscored part that does not belong to a package around ``module``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            imported = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        else:
            continue
        for name in imported:
            parts = name.split(".")
            private = [i for i, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")]
            if private and not f"{module}.".startswith(".".join(parts[: private[0]]) + "."):
                yield f"{name}, line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nobody_imports_anothers_private_names(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert list(foreign_private_imports(module_name(path), tree)) == []


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("from evenkeel.stats._chance import x", False),
        ("from evenkeel.clipping import _clip", False),
        ("import torch._dynamo", False),
        ("from torch import _foreach_norm", False),
        ("from evenkeel.study._plan import Plan", True),
        ("from evenkeel._version import __version__", True),
    ],
)
def test_foreign_private_imports_are_seen(statement: str, allowed: bool) -> None:
    found = list(foreign_private_imports("evenkeel.study._store", ast.parse(statement)))
    assert (found == []) is allowed


ATTRIBUTES = re.compile(r"^Attributes:\n((?:[ ]{4}.*(?:\n|$)|\n)+)", re.MULTILINE)


def documented_dataclasses() -> Iterator[Any]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                section = ATTRIBUTES.search(ast.get_docstring(node) or "")
                if section:
                    yield pytest.param(node, section[1], id=f"{module_name(path)}.{node.name}")


@pytest.mark.parametrize(("node", "section"), list(documented_dataclasses()))
def test_documented_attributes_are_the_fields(node: ast.ClassDef, section: str) -> None:
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)]
    names = [ast.unparse(field.target) for field in fields if "ClassVar" not in ast.unparse(field.annotation)]
    assert re.findall(r"^ {4}(\w+):", section, re.MULTILINE) == [name for name in names if not name.startswith("_")]


# --- packaging and papers


def test_versions_agree(project: dict[str, Any]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert evenkeel.__version__ == project["version"] == citation["version"]


def test_the_changelog_knows_this_version(project: dict[str, Any]) -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"Unreleased", project["version"]} & set(headings)


def test_the_package_page_is_the_readme(project: dict[str, Any]) -> None:
    assert project.get("readme") == "README.md"
    assert (ROOT / "README.md").is_file()


def test_constraints_pin_every_direct_dependency_within_its_range(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    extras = project["optional-dependencies"].values()
    for wanted in map(Requirement, sum(extras, project["dependencies"])):
        pin = pins.get(canonicalize_name(wanted.name), "no pin")
        assert pin in wanted.specifier, f"{wanted} against {pin}"


def test_every_third_party_import_is_a_declared_dependency(project: dict[str, Any]) -> None:
    other_name = {"sklearn": "scikit-learn", "yaml": "pyyaml"}
    extras = project["optional-dependencies"]
    declared = {Requirement(line).name for line in sum(extras.values(), project["dependencies"])}
    declared -= {Requirement(line).name for line in extras["dev"]}
    imported = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
            elif isinstance(node, ast.Import):
                imported.update(alias.name.split(".")[0] for alias in node.names)
    foreign = {other_name.get(name, name) for name in imported - sys.stdlib_module_names - {"evenkeel"}}
    assert foreign <= declared


# --- the Makefile's set-up, with a stand-in for Python that tells how it was called


def make_demo(tmp_path: Path, python: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-C", str(ROOT), "demo", f"PYTHON={python}", f"VENV={tmp_path}/venv"]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE")
    }  # not the outer make's
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def stand_in(tmp_path: Path, script: str) -> str:
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\necho "called: $*"\n{script}\n', encoding="utf-8")
    path.chmod(0o755)
    return str(path)


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@needs_make
def test_set_up_without_python_says_so(tmp_path: Path) -> None:
    done = make_demo(tmp_path, "no-such-python")
    assert done.returncode != 0
    assert "there is no command no-such-python" in done.stderr


@needs_make
def test_set_up_refuses_an_old_python(tmp_path: Path) -> None:
    old = stand_in(tmp_path, 'case "$*" in *version_info*) exit 1 ;; -V) echo "Python 3.10.9" ;; esac')
    done = make_demo(tmp_path, old)
    assert done.returncode != 0
    assert "needs Python >= 3.11" in done.stderr
    assert "Python 3.10.9" in done.stderr


@needs_make
def test_set_up_tells_what_is_missing(tmp_path: Path) -> None:
    done = make_demo(tmp_path, stand_in(tmp_path, 'case "$*" in *ensurepip*) exit 1 ;; esac'))
    assert done.returncode != 0
    assert "python3-venv" in done.stderr


@needs_make
@pytest.mark.parametrize("interrupted", [True, False])
def test_set_up_begins_anew_only_after_an_interruption(tmp_path: Path, interrupted: bool) -> None:
    python = stand_in(tmp_path, 'case "$*" in *install*) exit 1 ;; esac')
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(python)
    (folder / "pyvenv.cfg").touch()
    if interrupted:
        (folder / ".evenkeel-begun").touch()
    done = make_demo(tmp_path, python)
    assert done.returncode != 0  # the installation fails, and leaves the marker, not the stamp
    assert (folder / ".evenkeel-begun").exists()
    assert not (folder / ".evenkeel-base").exists()
    assert ("called: -m venv" in done.stdout) is interrupted
    assert (folder / "bin").exists() is not interrupted


@needs_make
def test_set_up_never_installs_outside_a_virtual_environment(tmp_path: Path) -> None:
    # A folder that lost its pyvenv.cfg: its python is the machine's own, and would install there.
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    outside = stand_in(tmp_path, 'case "$*" in *base_prefix*) exit 1 ;; esac')
    (tmp_path / "venv" / "bin" / "python").symlink_to(outside)
    done = make_demo(tmp_path, outside)
    assert done.returncode != 0
    assert "no virtual environment" in done.stderr
    assert "install" not in done.stdout.replace("Installing", "")


@needs_make
def test_set_up_leaves_a_folder_of_something_else_alone(tmp_path: Path) -> None:
    kept = tmp_path / "venv" / "lib" / "thesis.txt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    done = make_demo(tmp_path, sys.executable)
    assert done.returncode != 0
    assert "no virtual environment" in done.stderr
    assert [path for path in (tmp_path / "venv").rglob("*") if path.is_file()] == [kept]


# --- what we hand out


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True, capture_output=True)
    (source,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return source, wheel


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    ours = {path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert held == {path.relative_to(SOURCE.parent).as_posix() for path in ours}
    assert {"evenkeel/py.typed", "evenkeel/models/tiny/model.safetensors"} <= held
    assert any(name.startswith("evenkeel/report/templates/") for name in held)


@pytest.mark.slow
def test_the_source_archive_holds_no_junk(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as source:
        held = [name.partition("/")[2] for name in source.getnames()]
    assert {"LICENSE", "Makefile", "constraints.txt", "pyproject.toml", "tests/test_house.py"} <= set(held)
    assert [name for name in held if re.search(r"__pycache__|\.pyc$|(^|/)\.(?!gitignore$)", name)] == []


@pytest.mark.slow
def test_the_wheel_installs_into_an_empty_environment(archives: tuple[Path, Path], tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call(programs / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", archives[1])
    call(programs / "python", "-m", "pip", "check")
    assert evenkeel.__version__ in call(programs / "evenkeel", "--version")
    told = call(programs / "evenkeel", "demo", "--seeds", "1", "--out", tmp_path / "demo")
    assert all(method in told for method in ("full", "gradual-unfreezing", "component-clip"))
    assert (tmp_path / "demo" / "report.html").stat().st_size > 1_000_000
    shutil.rmtree(tmp_path / "venv")  # a gigabyte
