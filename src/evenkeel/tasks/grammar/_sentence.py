"""What a sentence means, how it is said, and how one is drawn.

A sentence tells of one event (somebody does something, perhaps to somebody, perhaps somewhere), and may hang a second
event on one of the people as a relative clause. Its meaning is a set of facts: two sentences say the same if their
facts are equal, and one follows from the other if its facts are among the other's.
"""

from __future__ import annotations

from dataclasses import dataclass

from evenkeel.tasks.grammar._draw import Draw
from evenkeel.tasks.grammar._words import (
    ADJECTIVES,
    ADVERBS,
    INTRANSITIVE,
    NOUNS,
    PLACES,
    PLURAL_DETERMINERS,
    PREPOSITIONS,
    SINGULAR_DETERMINERS,
    TRANSITIVE,
    be,
    participle,
    plural,
    present,
)

LONGEST = 18  # words, with the full stop: a pair and its three special tokens stay well below 64 positions
Fact = tuple[object, ...]


@dataclass(frozen=True, kw_only=True)
class Person:
    """One or many people of one kind.

    Attributes:
        noun: the kind, in the singular.
        many: whether the noun is in the plural.
        determiner: the word before it.
        adjective: what they are like, or None.
        origin: the place that they are from, as written, or None.
    """

    noun: str
    many: bool
    determiner: str = "the"
    adjective: str | None = None
    origin: str | None = None

    @property
    def name(self) -> str:
        """The noun as written: what facts call these people."""
        return plural(self.noun) if self.many else self.noun


@dataclass(frozen=True, kw_only=True)
class Event:
    """Somebody does something.

    Attributes:
        verb: what is done, as the plural form.
        agent: who does it.
        patient: to whom it is done, or None where the verb is intransitive.
        adverb: how, or None.
    """

    verb: str
    agent: Person
    patient: Person | None = None
    adverb: str | None = None

    @property
    def people(self) -> tuple[Person, ...]:
        """The agent, and the patient if there is one."""
        return (self.agent,) if self.patient is None else (self.agent, self.patient)

    @property
    def fact(self) -> Fact:
        """Who does what to whom."""
        return ("event", self.verb, *(person.name for person in self.people))


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A main event, perhaps somewhere, perhaps with a second event as the relative clause of one of its people.

    Attributes:
        main: the event of the main clause.
        passive: whether the main clause is said in the passive; needs a patient.
        place: preposition and place, as written, of the main event, or None.
        fronted: whether the place comes first. After a relative clause at the end it always does: there a reader would
            take it for the place of the wrong event.
        relative: the event of the relative clause, which shares exactly one person with the main event, or None.
        relative_passive: whether a relative clause on its patient is said in the passive.
    """

    main: Event
    passive: bool = False
    place: tuple[str, str] | None = None
    fronted: bool = False
    relative: Event | None = None
    relative_passive: bool = False

    @property
    def host(self) -> Person | None:
        """The person whom the relative clause is about."""
        if self.relative is None:
            return None
        return next(person for person in self.relative.people if person in self.main.people)

    @property
    def facts(self) -> frozenset[Fact]:
        """The meaning: every event, how and where it happens, and what the people are like and where they are from."""
        events = [self.main] if self.relative is None else [self.main, self.relative]
        people = {person for event in events for person in event.people}
        found: set[Fact] = {event.fact for event in events}
        found |= {("how", event.fact, event.adverb) for event in events if event.adverb}
        found |= {("is", person.name, person.adjective) for person in people if person.adjective}
        found |= {("from", person.name, person.origin) for person in people if person.origin}
        if self.place:
            found.add(("where", self.main.fact, *self.place))
        return frozenset(found)

    @property
    def words(self) -> list[str]:
        """The words as said, with the full stop."""
        subject, last = self.main.people[0], self.main.people[-1]
        if self.passive:
            subject, last = last, subject
        place = [self.place[0], "the", self.place[1]] if self.place else []
        clause = self._noun_phrase(subject) + self._predicate(self.main, passive=self.passive)
        fronted = self.fronted or (self.relative is not None and last == self.host)
        return [*place, *clause, "."] if fronted else [*clause, *place, "."]

    @property
    def text(self) -> str:
        """The words, with spaces between them."""
        return " ".join(self.words)

    def _noun_phrase(self, person: Person, *, bare: bool = False) -> list[str]:
        words = [person.determiner, *([person.adjective] if person.adjective else []), person.name]
        words += ["from", "the", person.origin] if person.origin else []
        return words if bare or person != self.host else words + self._relative_clause()

    def _predicate(self, event: Event, *, passive: bool, bare: bool = False) -> list[str]:
        adverb = [event.adverb] if event.adverb else []
        if passive:
            by = self._noun_phrase(event.agent, bare=bare)
            return [be(many=event.people[-1].many), *adverb, participle(event.verb), "by", *by]
        verb = [*adverb, present(event.verb, many=event.agent.many)]
        return verb if event.patient is None else verb + self._noun_phrase(event.patient, bare=bare)

    def _relative_clause(self) -> list[str]:
        event = self.relative
        if event is None:
            return []
        if self.host == event.agent:
            return ["who", *self._predicate(event, passive=False, bare=True)]
        if self.relative_passive:
            return ["who", *self._predicate(event, passive=True, bare=True)]
        adverb = [event.adverb] if event.adverb else []
        agent = self._noun_phrase(event.agent, bare=True)
        return ["who", *agent, *adverb, present(event.verb, many=event.agent.many)]


def draw_sentence(draw: Draw, *, definite: bool, relative: float) -> Sentence:
    """Draw a sentence of at most ``LONGEST`` words.

    Args:
        draw: the source of chance.
        definite: whether every determiner is "the", so that a noun means the same people throughout a pair of texts.
        relative: share of sentences that have a relative clause.

    Returns:
        The sentence. No noun occurs in it twice.
    """
    while True:
        sentence = _draw_any(draw, definite=definite, relative=relative)
        if len(sentence.words) <= LONGEST:
            return sentence


def _draw_any(draw: Draw, *, definite: bool, relative: float) -> Sentence:
    first, second, third = _draw_people(draw, definite=definite)
    main = _draw_event(draw, first, second if draw.chance(0.6) else None)
    host, extra = draw.pick(main.people), None
    if draw.chance(relative):
        if draw.chance(0.3):
            extra = _draw_event(draw, host, None)
        else:
            extra = _draw_event(draw, *((host, third) if draw.chance(0.5) else (third, host)))
        if extra.verb == main.verb:
            extra = None
    return Sentence(
        main=main,
        passive=main.patient is not None and draw.chance(0.4),
        place=(draw.pick(PREPOSITIONS), draw_place(draw)) if draw.chance(0.3) else None,
        fronted=draw.chance(0.5),
        relative=extra,
        relative_passive=draw.chance(0.4),
    )


def _draw_people(draw: Draw, *, definite: bool) -> list[Person]:
    nouns = draw.shuffled(NOUNS)[:3]
    alike, number = draw.chance(0.4), draw.chance(0.5)  # alike: near misses then need no word in another number
    return [_draw_person(draw, noun, many=number if alike else draw.chance(0.5), definite=definite) for noun in nouns]


def _draw_person(draw: Draw, noun: str, *, many: bool, definite: bool) -> Person:
    return Person(
        noun=noun,
        many=many,
        determiner="the" if definite else draw.pick(PLURAL_DETERMINERS if many else SINGULAR_DETERMINERS),
        adjective=draw.pick(ADJECTIVES) if draw.chance(0.25) else None,
        origin=draw_place(draw) if draw.chance(0.15) else None,
    )


def _draw_event(draw: Draw, agent: Person, patient: Person | None) -> Event:
    verb = draw.pick(INTRANSITIVE if patient is None else TRANSITIVE)
    return Event(verb=verb, agent=agent, patient=patient, adverb=draw.pick(ADVERBS) if draw.chance(0.2) else None)


def draw_place(draw: Draw) -> str:
    """Draw a place, in the singular or the plural, as written."""
    place = draw.pick(PLACES)
    return plural(place) if draw.chance(0.4) else place
