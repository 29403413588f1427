"""Acceptability: is this a sentence? Good ones come from the grammar, bad ones differ from a good one in one place."""

from __future__ import annotations

from collections.abc import Callable

from evenkeel.tasks.grammar._draw import Draw
from evenkeel.tasks.grammar._recognise import is_sentence
from evenkeel.tasks.grammar._sentence import draw_sentence
from evenkeel.tasks.grammar._words import OTHER_NUMBER

RELATIVE = 0.5  # share of single sentences that have a relative clause


def draw_acceptability(draw: Draw, label: int) -> tuple[str]:
    """Draw one text: a sentence for label 1; for label 0 a sentence spoilt so that it is none any more."""
    words = draw_sentence(draw, definite=False, relative=RELATIVE).words
    return (" ".join(words if label == 1 else _spoil(draw, words)),)


def _spoil(draw: Draw, words: list[str]) -> list[str]:
    change = draw.pick(_CHANGES)
    while True:  # every sentence has some place where each of the changes spoils it
        spoilt = change(draw, words)
        if not is_sentence(spoilt):
            return spoilt


def _break_agreement(draw: Draw, words: list[str]) -> list[str]:
    place = draw.pick([index for index, word in enumerate(words) if word in OTHER_NUMBER])
    return [*words[:place], OTHER_NUMBER[words[place]], *words[place + 1 :]]


def _swap_neighbours(draw: Draw, words: list[str]) -> list[str]:
    place = draw.pick(range(len(words) - 2))  # the full stop stays
    return [*words[:place], words[place + 1], words[place], *words[place + 2 :]]


def _drop_word(draw: Draw, words: list[str]) -> list[str]:
    place = draw.pick(range(len(words) - 1))
    return words[:place] + words[place + 1 :]


_CHANGES: tuple[Callable[[Draw, list[str]], list[str]], ...] = (
    _break_agreement,
    _break_agreement,
    _swap_neighbours,
    _drop_word,
)
"""Agreement is broken in half of the spoilt sentences; words are swapped in a quarter and dropped in a quarter."""
