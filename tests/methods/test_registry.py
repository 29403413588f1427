from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest

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
    ],
)
def test_a_method_is_made_from_its_name_and_options(text: str, method: Method) -> None:
    assert parse_method(text) == method


@pytest.mark.parametrize("text", ["full", "component-clip", "gradual-unfreezing"])
def test_a_method_says_who_it_is(text: str) -> None:
    method = parse_method(text)
    assert method.name == text
    assert method.summary
    assert "arXiv" in method.source
    assert not {field.name for field in dataclasses.fields(method)} & {"name", "summary", "source", "owns"}  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.max_norm = 3.0  # type: ignore[attr-defined]


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
        ("full:max_norm=-1", "full:max_norm=-1: max_norm -1"),
        ("full:max_norm=yes", "max_norm True .* is no positive number"),
        ("full:max_norm=", "max_norm None .* is no positive number"),
        ("component-clip:max_norm=nan", "is no positive number"),
        ("component-clip:max_norm=low", "max_norm 'low'"),
        ("component-clip:max_norm={", "cannot be read as YAML"),
        ("component-clip:by=layers", "component-clip:by=layers: unknown partition 'layers': did you mean 'layer'"),
        ("gradual-unfreezing:epochs=0", "epochs must be positive, but got 0"),
        ("gradual-unfreezing:epochs=two", "a value is of the wrong type"),
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
    assert "foreign" not in known_methods()
    install("Foreign")
    assert parse_method("foreign:strength=2") == Foreign(strength=2)
    assert set(known_methods()) == {"full", "component-clip", "gradual-unfreezing", "foreign"}


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
