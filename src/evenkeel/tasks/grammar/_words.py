"""The words of the grammar and their forms. No word belongs to two classes, so a text is read without guessing."""

from __future__ import annotations

NOUNS = (
    "baker", "dentist", "farmer", "lawyer", "neighbor", "painter",
    "sailor", "singer", "student", "tailor", "teacher", "writer",
)  # fmt: skip
PLACES = ("castle", "forest", "garden", "harbor", "market", "station", "tower", "village")
TRANSITIVE = ("admire", "blame", "greet", "invite", "praise", "rescue", "thank", "trust")
INTRANSITIVE = ("dance", "laugh", "rest", "sing", "sleep", "smile", "wait", "work")
ADJECTIVES = ("clever", "gentle", "happy", "old", "tall", "young")
ADVERBS = ("calmly", "gladly", "openly", "proudly")
PREPOSITIONS = ("behind", "in", "near", "outside")  # where something happens; "from" says where somebody comes from
SINGULAR_DETERMINERS = ("the", "every", "this")
PLURAL_DETERMINERS = ("the", "many", "several", "these")
FUNCTION_WORDS = (".", "by", "from", "who")


def plural(noun: str) -> str:
    """Return the plural of a noun or a place."""
    return f"{noun}s"


def present(verb: str, *, many: bool) -> str:
    """Return the present tense for a subject in the plural (``many``) or the singular."""
    return verb if many else f"{verb}s"


def participle(verb: str) -> str:
    """Return the participle that the passive is made with."""
    return f"{verb}d" if verb.endswith("e") else f"{verb}ed"


def be(*, many: bool) -> str:
    """Return the auxiliary of the passive."""
    return "are" if many else "is"


WORD_CLASSES: tuple[tuple[str, ...], ...] = (
    (*NOUNS, *map(plural, NOUNS)),
    (*PLACES, *map(plural, PLACES)),
    tuple(present(verb, many=many) for verb in TRANSITIVE for many in (False, True)),
    tuple(present(verb, many=many) for verb in INTRANSITIVE for many in (False, True)),
    tuple(map(participle, TRANSITIVE)),
    ADJECTIVES,
    ADVERBS,
    PREPOSITIONS,
    tuple(sorted({*SINGULAR_DETERMINERS, *PLURAL_DETERMINERS})),
    (be(many=False), be(many=True)),
)
"""Words that can stand in each other's place but for number; the words that have no like are in none of them."""

VOCABULARY: tuple[str, ...] = tuple(sorted({*(word for words in WORD_CLASSES for word in words), *FUNCTION_WORDS}))
"""Every word that a sentence can hold, sorted; no special tokens."""

_FLIPS = {
    **{noun: plural(noun) for noun in NOUNS},
    **{present(verb, many=False): verb for verb in TRANSITIVE + INTRANSITIVE},
    "is": "are",
    "this": "these",
}
OTHER_NUMBER: dict[str, str] = {**_FLIPS, **{right: left for left, right in _FLIPS.items()}, "every": "several"}
"""Word -> the same word in the other number, for the words that take part in agreement."""
