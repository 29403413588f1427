"""Is a string of words a sentence? A recogniser, on the generous side.

Corrupted sentences are labelled unacceptable, so what is recognised here must hold everything that the grammar makes,
and also what it never makes but English allows: bare plurals, a relative pronoun left out, an adverb elsewhere, a
determiner on its own, a passive without its agent. The language is finite in depth, hence regular: every word becomes
one letter, and one regular expression reads the letters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evenkeel.tasks.grammar._words import (
    ADJECTIVES,
    ADVERBS,
    INTRANSITIVE,
    NOUNS,
    PLACES,
    PLURAL_DETERMINERS,
    PREPOSITIONS,
    TRANSITIVE,
    participle,
    plural,
    present,
)

_CLASSES: dict[str, Sequence[str]] = {
    "p": PLURAL_DETERMINERS,
    "d": ["the"],
    "t": ["this"],
    "q": ["every"],
    "A": ADJECTIVES,
    "R": ADVERBS,
    "N": NOUNS,
    "M": [plural(noun) for noun in NOUNS],
    "L": PLACES,
    "K": [plural(place) for place in PLACES],
    "V": [present(verb, many=False) for verb in TRANSITIVE],
    "U": [present(verb, many=True) for verb in TRANSITIVE],
    "I": [present(verb, many=False) for verb in INTRANSITIVE],
    "J": [present(verb, many=True) for verb in INTRANSITIVE],
    "D": [participle(verb) for verb in TRANSITIVE],
    "l": PREPOSITIONS,
    "f": ["from"],
    "w": ["who"],
    "y": ["by"],
    "b": ["is"],
    "e": ["are"],
    "s": ["."],
}
_LETTER = {word: letter for letter, words in _CLASSES.items() for word in words}

_PLACE = "(?:dL|d?K)"
_SINGULAR_HEAD, _PLURAL_HEAD = "(?:[dtq]A*N|t)", "(?:[dp]?A*M|dA+|p)"
_ORIGIN = f"(?:[fl]{_PLACE})*"
_AROUND = f"(?:R|l{_PLACE})*"


def _predicate(intransitive: str, transitive: str, auxiliary: str, person: str) -> str:
    does = f"(?:{intransitive}|{transitive}{person}|{auxiliary}R*DR*(?:y{person})?)"
    return f"(?:R*{does}{_AROUND})"


def _noun_phrases(depth: int) -> tuple[str, str]:
    """Return the expressions of singular and plural noun phrases; relative clauses nest at most ``depth`` deep."""
    if depth == 0:
        return _SINGULAR_HEAD + _ORIGIN, _PLURAL_HEAD + _ORIGIN
    one, many = _noun_phrases(depth - 1)
    on_patient = f"w?(?:{one}R*V|{many}R*U)R*"
    one_or_many = f"(?:{one}|{many})"
    singular = f"(?:w{_predicate('I', 'V', 'b', one_or_many)}|{on_patient})?"
    plural_ = f"(?:w{_predicate('J', 'U', 'e', one_or_many)}|{on_patient})?"
    return f"{_SINGULAR_HEAD}{_ORIGIN}{singular}", f"{_PLURAL_HEAD}{_ORIGIN}{plural_}"


def _sentence() -> re.Pattern[str]:
    one, many = (f"(?:{phrase})" for phrase in _noun_phrases(2))
    person = f"(?:{one}|{many})"
    singular, plural_ = one + _predicate("I", "V", "b", person), many + _predicate("J", "U", "e", person)
    return re.compile(f"{_AROUND}(?:{singular}|{plural_})s")


_SENTENCE = _sentence()


def is_sentence(words: Sequence[str]) -> bool:
    """Tell whether the words, the full stop among them, are a sentence of the grammar or of English close to it.

    Args:
        words: words of the vocabulary.

    Returns:
        True for every sentence of the grammar.

    Example:
        >>> is_sentence("the sailors who the baker greets sleep .".split())
        True
        >>> is_sentence("the sailors who the baker greets sleeps .".split())
        False
    """
    return _SENTENCE.fullmatch("".join(_LETTER[word] for word in words)) is not None
