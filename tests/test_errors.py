from __future__ import annotations

import inspect

import pytest

from evenkeel import errors

CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == errors.__name__]


@pytest.mark.parametrize("error", CLASSES)
def test_one_except_catches_every_error(error: type[Exception]) -> None:
    assert issubclass(error, errors.EvenkeelError)
    assert error.__name__ in errors.__all__


@pytest.mark.parametrize("error", [error for error in CLASSES if error is not errors.EvenkeelError])
def test_an_error_is_also_what_python_would_raise(error: type[Exception]) -> None:
    assert issubclass(error, ValueError | RuntimeError | ImportError)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "componnent-clip",
            "unknown method 'componnent-clip': did you mean 'component-clip'? Known: component-clip, full",
        ),
        ("xyz", "unknown method 'xyz'; Known: component-clip, full"),
        ("", "unknown method ''; Known: component-clip, full"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(given: str, said: str) -> None:
    assert errors.unknown_name("method", given, iter(["full", "component-clip"])) == said
