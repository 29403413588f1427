from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest

import evenkeel.methods
from evenkeel.errors import MethodError
from evenkeel.methods import (
    ComponentClipping,
    FullFineTuning,
    GradualUnfreezing,
    Method,
    _registry,
    known_methods,
    parse_method,
    parse_mix,
)


@dataclass(frozen=True, kw_only=True)
class Foreign(Method):
    """A method as another package would bring it."""

    name: ClassVar[str] = "foreign"
    summary: ClassVar[str] = "of another package"
    source: ClassVar[str] = "nowhere"

    strength: float = 1.0


class Twin(Foreign):
    name: ClassVar[str] = "full"


class Rival(Foreign):
    name: ClassVar[str] = "rival"
    conflicts: ClassVar[dict[str, str]] = {"foreign": "they are sworn enemies"}


@dataclass(frozen=True, kw_only=True)
class Picky(Foreign):
    name: ClassVar[str] = "picky"

    def __post_init__(self) -> None:
        assert self.strength > 0


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Register names of this file as entry points, and forget them afterwards."""

    def put(*names: str) -> None:
        points = [EntryPoint(name, f"{__name__}:{name}", "evenkeel.methods") for name in names]
        monkeypatch.setattr(_registry, "entry_points", lambda group: points if group == "evenkeel.methods" else [])
        monkeypatch.setattr(EntryPoint, "load", lambda point: globals()[point.name])
        known_methods.cache_clear()

    yield put
    known_methods.cache_clear()


ULMFIT = GradualUnfreezing(epochs=1, final_epochs=2.5, restart=False)


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("full", FullFineTuning()),
        (" full ", FullFineTuning()),
        ("full:max_norm=.5", FullFineTuning(max_norm=0.5)),
        ("full:max_norm=inf", FullFineTuning(max_norm=math.inf)),
        ("full:max_norm=.inf", FullFineTuning(max_norm=math.inf)),
        ("component-clip", ComponentClipping(max_norm=0.05, by="tensor")),
        ("component-clip:max_norm=1e5:by=layer", ComponentClipping(max_norm=1e5, by="layer")),
        ("component-clip:max_norm=1e-3", ComponentClipping(max_norm=1e-3)),
        ("gradual-unfreezing:epochs=2", GradualUnfreezing(epochs=2)),
        ("gradual-unfreezing:epochs=null", GradualUnfreezing()),
        ("gradual-unfreezing:epochs=1:final_epochs=2.5:restart=false", ULMFIT),
    ],
)
def test_a_method_is_made_from_its_name_and_options(text: str, method: Method) -> None:
    assert parse_method(text) == method


@pytest.mark.parametrize("text", known_methods())
def test_a_method_says_who_it_is(text: str) -> None:
    method = parse_method(text)  # its options have defaults
    assert method.name == text
    assert 0 < len(method.summary) <= 90
    assert "arXiv" in method.source
    names = {field.name for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    assert not names & {"name", "summary", "source", "owns", "otherwise", "touches", "conflicts"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.strength = 3.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", known_methods())
def test_methods_conflict_with_methods_that_there_are(text: str) -> None:
    conflicts = known_methods()[text].conflicts
    assert conflicts.keys() <= known_methods().keys() - {text}
    assert all(conflicts.values())


def test_every_public_module_is_one_method() -> None:
    modules = {
        found.name for found in pkgutil.iter_modules(evenkeel.methods.__path__) if not found.name.startswith("_")
    }
    assert {name.replace("-", "_") for name in known_methods()} == modules
    for name, method in known_methods().items():
        assert method.__module__ == f"evenkeel.methods.{name.replace('-', '_')}"
        assert importlib.import_module(method.__module__).__all__ == [method.__name__]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("componnent-clip", "did you mean 'component-clip'"),
        ("Full", "did you mean 'full'"),
        ("", "unknown method ''"),
        ("full:maxnorm=1", "unknown option of full 'maxnorm': did you mean 'max_norm'"),
        ("full:owns=1", "unknown option of full 'owns'"),
        ("full:max_norm", "'max_norm' in 'full:max_norm' is no option; write full:option=value"),
        ("full:", "'' in 'full:' is no option"),
        ("full:max_norm=1:max_norm=2", "gives the option 'max_norm' twice"),
        ("full:max_norm=-1", "full:max_norm=-1: full: max_norm must be a number above 0 or inf, but got -1"),
        ("full:max_norm=yes", "max_norm must be a number above 0 or inf, but got True"),
        ("full:max_norm=null", "max_norm must be a number above 0 or inf, but got None"),
        ("full:max_norm={query: 0.1}", "max_norm must be a number above 0 or inf, but got {'query': 0.1}"),
        ("full:max_norm=", "'max_norm=' in 'full:max_norm=' gives no value; write max_norm=value"),
        ("mosbach:epochs= :warmup=0.1", "'epochs= ' in .* gives no value"),
        ("sam:rho=2026-02-31", "cannot be read as YAML"),
        pytest.param(f"sam:rho=1{'0' * 400}", "rho must be a finite number from 0, but got one of more", id="long"),
        pytest.param(f"sam:rho=1{'0' * 5000}", "cannot be read as YAML", id="longer"),
        ("component-clip:max_norm=nan", "is no positive number"),
        ("component-clip:max_norm=low", "max_norm 'low'"),
        ("component-clip:max_norm={", "cannot be read as YAML"),
        (
            "component-clip:by=layers",
            "component-clip:by=layers: unknown by of component-clip 'layers': did you mean 'layer'",
        ),
        ("gradual-unfreezing:epochs=0", "epochs must be a finite number above 0 or none, but got 0"),
        ("gradual-unfreezing:epochs=two", "must be a finite number above 0 or none, but got 'two'"),
        ("gradual-unfreezing:epochs=[1]", r"must be a finite number above 0 or none, but got \[1\]"),
        ("gradual-unfreezing:restart=maybe", "restart must be true or false, but got 'maybe'"),
        ("noisytune:strength=-1", "noisytune:strength=-1: noisytune: strength must be"),
    ],
)
def test_what_cannot_be_parsed_is_told(text: str, said: str) -> None:
    with pytest.raises(MethodError, match=said):
        parse_method(text)


def test_a_mix_is_parsed_part_by_part() -> None:
    mix = parse_mix("gradual-unfreezing:epochs=2 + component-clip:max_norm=0.1")
    assert tuple(mix.methods) == (GradualUnfreezing(epochs=2), ComponentClipping(max_norm=0.1))
    assert mix.name == "gradual-unfreezing+component-clip"


@pytest.mark.parametrize(("text", "said"), [("full+", "unknown method ''"), ("full+component-clip", "cannot be mixed")])
def test_a_mix_that_cannot_be(text: str, said: str) -> None:
    with pytest.raises(MethodError, match=said):
        parse_mix(text)


def test_a_package_brings_a_method(install: Callable[..., None]) -> None:
    own = set(known_methods())
    assert {"full", "component-clip", "gradual-unfreezing"} < own
    install("Foreign")
    assert parse_method("foreign:strength=2") == Foreign(strength=2)
    assert parse_mix("foreign+component-clip").name == "foreign+component-clip"
    assert set(known_methods()) - own == {"foreign"}
    assert list(known_methods())[-1] == "foreign"  # evenkeel's own come first


def test_a_method_of_another_package_takes_part_in_mixes(install: Callable[..., None]) -> None:
    install("Foreign", "Rival")
    with pytest.raises(MethodError, match="foreign and rival cannot be mixed: they are sworn enemies; keep one"):
        parse_mix("foreign+rival")
    assert [type(method) for method in parse_mix("rival+full").methods] == [Rival, FullFineTuning]


def test_what_a_foreign_method_refuses_names_what_was_written(install: Callable[..., None]) -> None:
    install("Picky")
    with pytest.raises(MethodError, match="a value is of the wrong type"):
        parse_method("picky:strength=much")


def test_two_methods_of_one_name_are_refused(install: Callable[..., None]) -> None:
    install("Twin")
    with pytest.raises(MethodError, match=r"named 'full': evenkeel\.methods\.full and .*test_registry"):
        known_methods()


@pytest.mark.parametrize("name", ["INSTANCE", "helper", "dataclasses"])
def test_an_entry_point_that_is_no_method_is_refused(install: Callable[..., None], name: str) -> None:
    install(name)
    with pytest.raises(MethodError, match="is no class of Method"):
        known_methods()


INSTANCE: Any = Foreign()


def helper() -> None:
    """Not a method."""


def test_an_option_may_be_a_mapping() -> None:
    method = parse_method('component-clip:max_norm={query: 0.1, "layer.0.*": 1e-3, "*": .05}:by=module')
    assert method == ComponentClipping(max_norm={"query": 0.1, "layer.0.*": 1e-3, "*": 0.05}, by="module")
