"""Chance that repeats: the same key gives the same draws on every machine and every Python.

Of `random.Random` only the stream of ``random()`` is promised to stay the same from version to version, so everything
here is made of that one method.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Literal, TypeVar

Item = TypeVar("Item")
Part = Literal["train", "validation", "test"]

PARTS: tuple[Part, ...] = ("train", "validation", "test")
_PART_OF_QUARTER: tuple[Part, ...] = ("train", "train", "validation", "test")


class Draw:
    """A source of random choices, fixed by a key.

    Args:
        *key: words and numbers that name the stream; any difference gives another stream.

    Example:
        >>> Draw("rows", 0).pick("abcdef") == Draw("rows", 0).pick("abcdef")
        True
    """

    def __init__(self, *key: str | int) -> None:
        digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
        self._random = random.Random(int.from_bytes(digest, "big"))

    def chance(self, share: float) -> bool:
        """Return True with probability ``share``."""
        return self._random.random() < share

    def pick(self, items: Sequence[Item]) -> Item:
        """Return one of the items, all equally likely."""
        return items[int(self._random.random() * len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """Return the items in random order (Fisher and Yates)."""
        mixed = list(items)
        for last in range(len(mixed) - 1, 0, -1):
            other = int(self._random.random() * (last + 1))
            mixed[last], mixed[other] = mixed[other], mixed[last]
        return mixed


def part_of(text: str) -> Part:
    """Return the part that a text belongs to: half of all texts to train, a quarter each to validation and test.

    The text alone decides, by its SHA-256. So parts share no text whatever their size and seed, and pretraining text
    that is taken from the train half never holds a validation or test text.
    """
    return _PART_OF_QUARTER[hashlib.sha256(text.encode()).digest()[0] % len(_PART_OF_QUARTER)]
