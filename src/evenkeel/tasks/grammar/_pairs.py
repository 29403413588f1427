"""Entailment and paraphrase: pairs of sentences, judged by their facts.

A near miss is a pair that goes together but for one thing: who did it to whom, who it was, what was done. It is said
with the same constructions and in the same number of words as a pair that goes together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from evenkeel.tasks.grammar._draw import Draw
from evenkeel.tasks.grammar._sentence import LONGEST, Event, Person, Sentence, draw_sentence
from evenkeel.tasks.grammar._words import ADJECTIVES, INTRANSITIVE, NOUNS, TRANSITIVE

KEPT = 0.4  # share of a premise's modifiers that its hypothesis repeats
RELATIVE = 0.8  # share of premises, and of first sentences of a paraphrase, that have a relative clause

Change = Callable[[Draw, Sentence, tuple[Person, ...]], Sentence]


def draw_entailment(draw: Draw, label: int) -> tuple[str, str]:
    """Draw premise and hypothesis: for label 0 the hypothesis follows from the premise, for label 1 it does not."""
    while True:
        premise = draw_sentence(draw, definite=True, relative=RELATIVE)
        hypothesis = _consequence(draw, premise)
        if label == 1:
            others = [_plainer(draw, person) for person in _people(premise)]
            told = {person.noun: person for person in (*others, *_people(hypothesis))}
            hypothesis = _near_miss(draw, hypothesis, tuple(told.values()), premise)
        if (hypothesis.facts <= premise.facts) == (label == 0) and hypothesis.text != premise.text:
            return premise.text, hypothesis.text


def draw_paraphrase(draw: Draw, label: int) -> tuple[str, str]:
    """Draw two sentences that differ in wording: for label 1 they say the same, for label 0 they do not."""
    while True:
        first = draw_sentence(draw, definite=True, relative=RELATIVE)
        second = first if label == 1 else _near_miss(draw, first, _people(first), first)
        second = _restate(draw, second)
        if second.text != first.text and len(second.words) <= LONGEST:
            return first.text, second.text


def _people(sentence: Sentence) -> tuple[Person, ...]:
    extra = sentence.relative.people if sentence.relative else ()
    return (*sentence.main.people, *(person for person in extra if person not in sentence.main.people))


def _consequence(draw: Draw, premise: Sentence) -> Sentence:
    """Return one event of the premise, with some of its modifiers, in the active or the passive."""
    event = premise.main if premise.relative is None or draw.chance(0.5) else premise.relative
    place = premise.place if event is premise.main and draw.chance(KEPT) else None
    agent = _plainer(draw, event.agent)
    patient = None if event.patient is None else _plainer(draw, event.patient)
    adverb = event.adverb if draw.chance(KEPT) else None
    main = Event(verb=event.verb, agent=agent, patient=patient, adverb=adverb)
    passive = patient is not None and draw.chance(0.5)
    return Sentence(main=main, passive=passive, place=place, fronted=draw.chance(0.5))


def _plainer(draw: Draw, person: Person) -> Person:
    adjective = person.adjective if draw.chance(KEPT) else None
    return replace(person, adjective=adjective, origin=person.origin if draw.chance(KEPT) else None)


def _restate(draw: Draw, sentence: Sentence) -> Sentence:
    """Say the same in other words: other voice, place moved, or main and relative clause exchanged."""
    if sentence.relative is not None and sentence.place is None and draw.chance(0.5):
        sentence = replace(sentence, main=sentence.relative, relative=sentence.main, passive=False)
    return replace(
        sentence,
        passive=sentence.main.patient is not None and draw.chance(0.5),
        fronted=draw.chance(0.5),
        relative_passive=draw.chance(0.5),
    )


def _near_miss(draw: Draw, sentence: Sentence, people: tuple[Person, ...], whole: Sentence) -> Sentence:
    """Change one thing, so that the facts are not all among those of ``whole``; try changes until one does that."""
    while True:
        missed = draw.pick(_CHANGES)(draw, sentence, people)
        if not missed.facts <= whole.facts:
            return missed


def _swap_roles(draw: Draw, sentence: Sentence, people: tuple[Person, ...]) -> Sentence:
    """Exchange agent and patient of one event."""
    if sentence.relative is not None and draw.chance(0.5):
        return replace(sentence, relative=_roles_swapped(sentence.relative))
    return replace(sentence, main=_roles_swapped(sentence.main))


def _roles_swapped(event: Event) -> Event:
    return event if event.patient is None else replace(event, agent=event.patient, patient=event.agent)


def _other_person(draw: Draw, sentence: Sentence, people: tuple[Person, ...]) -> Sentence:
    """Put one of the people in the place of another: both keep what they are like."""
    left, right = draw.pick(people), draw.pick(people)
    return _with_people(sentence, {left: right, right: left}, events=draw.pick(("main", "relative", "both")))


def _new_noun(draw: Draw, sentence: Sentence, people: tuple[Person, ...]) -> Sentence:
    """Replace a noun by one that is nowhere in the pair."""
    person = draw.pick(_people(sentence))
    noun = draw.pick([noun for noun in NOUNS if noun not in {other.noun for other in people}])
    return _with_people(sentence, {person: replace(person, noun=noun)}, events="both")


def _new_verb(draw: Draw, sentence: Sentence, people: tuple[Person, ...]) -> Sentence:
    """Replace the verb of one event by another one."""
    event = sentence.main if sentence.relative is None or draw.chance(0.5) else sentence.relative
    changed = replace(event, verb=draw.pick(INTRANSITIVE if event.patient is None else TRANSITIVE))
    return replace(sentence, main=changed) if event is sentence.main else replace(sentence, relative=changed)


def _new_adjective(draw: Draw, sentence: Sentence, people: tuple[Person, ...]) -> Sentence:
    """Replace the adjective of one of the people."""
    person = draw.pick(_people(sentence))
    if person.adjective is None:
        return sentence
    return _with_people(sentence, {person: replace(person, adjective=draw.pick(ADJECTIVES))}, events="both")


def _with_people(sentence: Sentence, instead: dict[Person, Person], *, events: str) -> Sentence:
    """Replace people in the main event, the relative one or both; not where the two would then fall apart."""

    def changed(event: Event) -> Event:
        patient = None if event.patient is None else instead.get(event.patient, event.patient)
        return replace(event, agent=instead.get(event.agent, event.agent), patient=patient)

    main = changed(sentence.main) if events != "relative" else sentence.main
    extra = sentence.relative
    if extra is not None and events != "main":
        extra = changed(extra)
    if extra is not None and len(set(extra.people) & set(main.people)) != 1:
        return sentence
    return replace(sentence, main=main, relative=extra)


_CHANGES: tuple[Change, ...] = (
    _swap_roles,
    _swap_roles,
    _swap_roles,
    _other_person,
    _other_person,
    _other_person,
    _new_noun,
    _new_verb,
    _new_adjective,
)
"""Two thirds of the near misses use the words of the pair alone; those that do not apply are drawn again."""
