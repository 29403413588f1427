from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Optional, Union

import pytest

from evenkeel.clipping import MaxNorm
from evenkeel.methods import (
    ComponentClipping,
    FullFineTuning,
    GradualUnfreezing,
    Method,
    known_methods,
    parse_method,
)
from evenkeel.methods._describe import Description, Option, describe, rivals

if TYPE_CHECKING:
    from nowhere import Unknown


def threshold_of(_: float) -> float:
    return 1.0


class Opaque:
    pass


@dataclass(frozen=True, kw_only=True)
class Told(Method):
    r"""Do this and that.

    With :math:`\eta` the rate:

    .. math::

        \eta \leftarrow \eta / 2


    Note: a paragraph, and no section.

    Source: Somebody 2020, arXiv 0000.00000, who goes on
        in a second line.

    Attributes:
        strength: how strong,
            between 0 and 1;

            with a second paragraph.
        rate (float): what the docstring gives a type: and a colon.
        moment:
            begins in a line of its own.

    Raises:
        MethodError: if ``strength`` is negative.

    Example:
        >>> Told(strength=1)
        Told(strength=1)

    What follows the sections is text again.
    """

    name: ClassVar[str] = "told"
    summary: ClassVar[str] = "this\n  and that"
    source: ClassVar[str] = "Somebody 2020"
    owns: ClassVar[frozenset[Any]] = frozenset({"phases", "clipping"})

    strength: float
    rate: float = 0.05
    moment: float | None = None
    silent: bool = False
    _private: int = 3
    made: int = field(default=0, init=False)


@dataclass(frozen=True, kw_only=True)
class Mute(Method):
    name: ClassVar[str] = "mute"
    summary: ClassVar[str] = "says nothing"
    source: ClassVar[str] = "nowhere"

    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Heir(Told):
    """Inherit, which our own methods do not.

    Attributes:
        rate: told anew.
    """

    name: ClassVar[str] = "heir"


class Bare(Method):
    """No dataclass, no summary, no source."""

    name: ClassVar[str] = "bare"


@dataclass(frozen=True, kw_only=True)
class Hidden(Method):
    """Types that only a type checker can find."""

    name: ClassVar[str] = "hidden"

    value: Unknown | None = None
    rate: float = 1.0


@pytest.mark.parametrize("name", known_methods())
def test_every_method_tells_everything(name: str) -> None:
    method = known_methods()[name]
    told = describe(method)
    assert told.name == name
    assert told.summary == method.summary
    assert told.source == method.source
    assert set(told.owns) == set(method.owns)
    assert told.text
    assert [option.name for option in told.options] == [item.name for item in dataclasses.fields(method)]  # type: ignore[arg-type]
    assert [option.name for option in told.options if not option.meaning] == []
    assert not any(f"{section}:\n" in told.text for section in ("Attributes", "Raises", "Example"))


@pytest.mark.parametrize("name", known_methods())
def test_every_example_is_the_method(name: str) -> None:
    example = describe(known_methods()[name]).example
    assert parse_method(example) == known_methods()[name]()


def test_a_method_of_ours() -> None:
    assert describe(ComponentClipping) == Description(
        name="component-clip",
        summary="all weights at once, the gradient norm of each component clipped on its own at 0.05",
        text="Fine-tune everything and clip the gradient norm of every component on its own; no global clipping "
        "beside it.",
        source="Yang & Ma 2022, arXiv 2210.10325",
        owns=("clipping",),
        options=(
            Option(
                name="max_norm",
                type="float | Mapping[str, float] | Threshold",
                default="0.05",
                meaning="the norm that each component's gradient may have, or norms by role or path.",
            ),
            Option(
                name="by",
                type='"tensor" | "module" | "role" | "layer" | "global"',
                default="tensor",
                meaning="what counts as one component, see :func:`evenkeel.components`.",
            ),
        ),
    )


def test_the_text_is_the_docstring_without_its_sections() -> None:
    assert describe(Told).text.splitlines() == [
        "Do this and that.",
        "",
        r"With :math:`\eta` the rate:",
        "",
        ".. math::",
        "",
        r"    \eta \leftarrow \eta / 2",
        "",
        "Note: a paragraph, and no section.",
        "",
        "What follows the sections is text again.",
    ]


def test_meanings_are_joined_to_one_line() -> None:
    told = describe(Told)
    assert [(option.name, option.default, option.meaning) for option in told.options] == [
        ("strength", None, "how strong, between 0 and 1; with a second paragraph."),
        ("rate", "0.05", "what the docstring gives a type: and a colon."),
        ("moment", "none", "begins in a line of its own."),
        ("silent", "false", ""),
    ]
    assert told.summary == "this and that"
    assert told.owns == ("clipping", "phases")


def test_an_example_gives_what_must_be_given() -> None:
    assert describe(Told).example == "told:strength=STRENGTH"
    assert describe(Mute).example == "mute:strength=1.0"
    assert describe(GradualUnfreezing).example == "gradual-unfreezing"
    assert describe(Bare).example == "bare"


def test_a_class_without_a_docstring() -> None:
    assert Mute.__doc__  # dataclass writes one
    told = describe(Mute)
    assert told.text == ""
    assert told.options == (Option(name="strength", type="float", default="1.0", meaning=""),)
    Mute.__doc__, kept = None, Mute.__doc__  # python -OO
    try:
        assert describe(Mute) == told
    finally:
        Mute.__doc__ = kept


def test_inherited_fields_keep_their_meanings() -> None:
    told = describe(Heir)
    assert told.text == "Inherit, which our own methods do not."
    meanings = {option.name: option.meaning for option in told.options}
    assert meanings["rate"] == "told anew."
    assert meanings["strength"].startswith("how strong, ")


def test_what_is_missing_is_empty() -> None:
    told = describe(Bare)
    assert told == Description(
        name="bare", summary="", text="No dataclass, no summary, no source.", source="", owns=(), options=()
    )


def test_types_that_cannot_be_found_stand_as_they_were_written() -> None:
    assert [option.type for option in describe(Hidden).options] == ["Unknown | None", "float"]


@pytest.mark.parametrize(
    "doc",
    [
        "",
        "Attributes:",
        "Attributes:\n    no entry, only words",
        "Attributes:\nrate: not indented",
        "Text.\n\n    Attributes:\n  rate: indented otherwise\n\n rate",
        "Parameters\n----------\nrate : float\n    In the words of NumPy.",
        "Source:",
        "\t\n \n",
    ],
)
def test_poor_docstrings_are_read_as_far_as_they_go(doc: str) -> None:
    poor = dataclass(frozen=True, kw_only=True)(
        type("Poor", (Method,), {"__doc__": doc, "name": "poor", "rate": 1.0, "__annotations__": {"rate": float}})
    )
    told = describe(poor)
    assert [(option.name, option.type, option.default) for option in told.options] == [("rate", "float", "1.0")]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (float, "float"),
        (MaxNorm, "float | Mapping[str, float] | Threshold"),
        (Optional[int], "int | None"),  # noqa: UP045  as others write it
        (Union[int, Literal["auto", 0]], 'int | "auto" | 0'),  # noqa: UP007
        (tuple[int, ...] | None, "tuple[int, ...] | None"),
        (Callable[[Opaque], bool], "Callable[[Opaque], bool]"),
        (Mapping[str, Literal["a.b"]], "Mapping[str, Literal['a.b']]"),
        (Any, "Any"),
    ],
)
def test_types_are_told_without_modules(kind: Any, said: str) -> None:
    (option,) = describe(made(kind, 1)).options
    assert option.type == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.05, "0.05"),
        (2e-5, "2e-05"),
        (math.inf, "inf"),
        (3, "3"),
        (True, "true"),
        (None, "none"),
        ("tensor", "tensor"),
        ("", '""'),
        ("layer.3.*", '"layer.3.*"'),
        ((0.9, 0.999), "[0.9, 0.999]"),
        (threshold_of, "threshold_of"),
        (Opaque, "Opaque"),
        (field(default_factory=lambda: {"query": 0.1, "*": math.inf}), '{query: 0.1, "*": inf}'),
        (field(default_factory=list), "[]"),
    ],
)
def test_defaults_are_told_as_the_command_line_takes_them(value: Any, said: str) -> None:
    (option,) = describe(made(Any, value)).options
    assert option.default == said


def test_an_object_is_told_without_its_address() -> None:
    (option,) = describe(made(Any, field(default_factory=Opaque))).options
    assert option.default is not None
    assert option.default.endswith(".Opaque object>")


@pytest.mark.parametrize(
    ("meaning", "said"),
    [
        ("epochs; None takes the ``num_train_epochs`` of the training.", "none: as the training says"),
        ("epochs; None takes ``TrainingArguments.num_train_epochs``.", "none: as the training says"),
        ("how many; None for as many as there are. Training goes on.", "none"),
        ("trained layers, or None.", "none"),
        ("how many.", "none"),
    ],
)
def test_what_none_stands_for_is_told_where_it_is_known(meaning: str, said: str) -> None:
    (option,) = describe(made(Any, None, doc=f"Do.\n\nAttributes:\n    value: {meaning}")).options
    assert (option.default, option.meaning) == (said, meaning)


def made(kind: Any, value: Any, doc: str = "Do.") -> type[Method]:
    """Make a method with one option."""
    content = {"__doc__": doc, "name": "made", "value": value, "__annotations__": {"value": kind}}
    return dataclass(frozen=True, kw_only=True)(type("Made", (Method,), content))


def test_rivals_are_those_that_own_the_same() -> None:
    full, clip, unfreezing, told = map(describe, (FullFineTuning, ComponentClipping, GradualUnfreezing, Told))
    everyone = [full, clip, unfreezing, told]
    assert rivals(full, everyone) == {"clipping": ("component-clip", "told")}
    assert rivals(told, everyone) == {"clipping": ("full", "component-clip"), "phases": ("gradual-unfreezing",)}
    assert rivals(describe(Bare), everyone) == {}
    assert rivals(unfreezing, [full]) == {"phases": ()}
