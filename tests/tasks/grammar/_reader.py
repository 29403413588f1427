"""A second opinion on meaning: reads facts off the text of a definite sentence, and shares no code with the package.

It works on the surface alone: it cuts the words into phrases by hand-written rules, where the package goes from facts
to words.
"""

from __future__ import annotations

VERBS = [
    "admire",
    "blame",
    "greet",
    "invite",
    "praise",
    "rescue",
    "thank",
    "trust",
    "dance",
    "laugh",
    "rest",
    "sing",
    "sleep",
    "smile",
    "wait",
    "work",
]
FORMS = {verb: verb for verb in VERBS} | {f"{verb}s": verb for verb in VERBS}
PARTICIPLES = {(f"{verb}d" if verb[-1] == "e" else f"{verb}ed"): verb for verb in VERBS[:8]}
ADJECTIVES = {"clever", "gentle", "happy", "old", "tall", "young"}
ADVERBS = {"calmly", "gladly", "openly", "proudly"}
PREPOSITIONS = {"behind", "in", "near", "outside"}

Facts = frozenset[tuple[str, ...]]


class Reader:
    """Reads one sentence from left to right."""

    def __init__(self, text: str) -> None:
        self.words = text.split()
        self.at = 0
        self.facts: set[tuple[str, ...]] = set()

    @property
    def next(self) -> str:
        return self.words[self.at]

    def take(self) -> str:
        self.at += 1
        return self.words[self.at - 1]

    def expect(self, word: str) -> None:
        assert self.take() == word, f"expected '{word}' as word {self.at} of {self.words}"

    def adverb(self) -> str | None:
        return self.take() if self.next in ADVERBS else None

    def person(self) -> str:
        self.expect("the")
        adjective = self.take() if self.next in ADJECTIVES else None
        name = self.take()
        if adjective:
            self.facts.add(("is", name, adjective))
        if self.next == "from":
            self.at += 1
            self.expect("the")
            self.facts.add(("from", name, self.take()))
        if self.next == "who":
            self.at += 1
            self.relative(name)
        return name

    def relative(self, name: str) -> None:
        if self.next == "the":  # who the bakers greet
            agent = self.person()
            adverb = self.adverb()
            self.event(adverb, FORMS[self.take()], agent, name)
        else:  # who greets the bakers, who is greeted by the bakers, who sleeps
            self.predicate(name)

    def predicate(self, subject: str) -> tuple[str, ...]:
        passive = self.next in {"is", "are"}
        self.at += passive
        adverb = self.adverb()
        if passive:
            verb = PARTICIPLES[self.take()]
            self.expect("by")
            return self.event(adverb, verb, self.person(), subject)
        verb = FORMS[self.take()]
        return self.event(adverb, verb, subject, *([self.person()] if verb in VERBS[:8] else []))

    def event(self, adverb: str | None, *event: str) -> tuple[str, ...]:
        self.facts.add(("event", *event))
        if adverb:
            self.facts.add(("how", adverb, *event))
        return event

    def place(self) -> tuple[str, str]:
        preposition = self.take()
        self.expect("the")
        return preposition, self.take()

    def sentence(self) -> Facts:
        place = self.place() if self.next in PREPOSITIONS else None
        event = self.predicate(self.person())
        if self.next in PREPOSITIONS:
            assert place is None, self.words
            place = self.place()
        self.expect(".")
        assert self.at == len(self.words), self.words
        if place:
            self.facts.add(("where", *place, *event))
        return frozenset(self.facts)


def read(text: str) -> Facts:
    """Return what a sentence says."""
    return Reader(text).sentence()
