"""A second opinion on acceptability: a chart parser with a grammar written down as rules.

The package recognises sentences by one regular expression over classes of words. Here is a context-free grammar of the
sentences that the generator is meant to make, and no generosity: what it accepts must be acceptable.
"""

from __future__ import annotations

from functools import cache

PEOPLE = [
    "baker",
    "dentist",
    "farmer",
    "lawyer",
    "neighbor",
    "painter",
    "sailor",
    "singer",
    "student",
    "tailor",
    "teacher",
    "writer",
]
PLACES = ["castle", "forest", "garden", "harbor", "market", "station", "tower", "village"]
DOING_TO = ["admire", "blame", "greet", "invite", "praise", "rescue", "thank", "trust"]
DOING = ["dance", "laugh", "rest", "sing", "sleep", "smile", "wait", "work"]

WORDS: dict[str, set[str]] = {
    "Det1": {"the", "every", "this"},
    "Det2": {"the", "many", "several", "these"},
    "N1": set(PEOPLE),
    "N2": {f"{noun}s" for noun in PEOPLE},
    "Place": set(PLACES) | {f"{place}s" for place in PLACES},
    "T1": {f"{verb}s" for verb in DOING_TO},
    "T2": set(DOING_TO),
    "I1": {f"{verb}s" for verb in DOING},
    "I2": set(DOING),
    "Part": {verb + ("d" if verb[-1] == "e" else "ed") for verb in DOING_TO},
    "Adj": {"clever", "gentle", "happy", "old", "tall", "young"},
    "Adv": {"calmly", "gladly", "openly", "proudly"},
    "Prep": {"behind", "in", "near", "outside"},
    "Be1": {"is"},
    "Be2": {"are"},
    **{word: {word} for word in ("the", "from", "who", "by", ".")},
}


def _rules() -> dict[str, list[list[str]]]:
    rules: dict[str, list[list[str]]] = {
        "S": [["Clause", "."], ["Where", "Clause", "."], ["Clause", "Where", "."]],
        "Where": [["Prep", "the", "Place"]],
        "Origin": [["from", "the", "Place"]],
        "Clause": [["NP1", "VP1"], ["NP2", "VP2"]],
        "NP": [["NP1"], ["NP2"]],
        "Short": [["Short1"], ["Short2"]],
    }
    for number in "12":
        head = [[f"Det{number}", *adjective, f"N{number}"] for adjective in ([], ["Adj"])]
        rules[f"Short{number}"] = [[*words, *origin] for words in head for origin in ([], ["Origin"])]
        rules[f"NP{number}"] = [[f"Short{number}"], [f"Short{number}", "who", f"Rel{number}"]]
        for phrase, person in (("VP", "NP"), ("RelVP", "Short")):
            rules[f"{phrase}{number}"] = [
                [*adverb, *verb] for adverb in ([], ["Adv"]) for verb in ([f"I{number}"], [f"T{number}", person])
            ] + [[f"Be{number}", *adverb, "Part", "by", person] for adverb in ([], ["Adv"])]
        rules[f"Rel{number}"] = [[f"RelVP{number}"]] + [
            [f"Short{other}", *adverb, f"T{other}"] for other in "12" for adverb in ([], ["Adv"])
        ]
    return rules


RULES = _rules()


def accepts(text: str) -> bool:
    """Return whether the grammar derives the text."""
    words = text.split()

    @cache
    def spans(symbol: str, start: int) -> frozenset[int]:
        """Return where a phrase that starts here can end."""
        if symbol in WORDS:
            return frozenset({start + 1} if start < len(words) and words[start] in WORDS[symbol] else set())
        return frozenset(end for rule in RULES[symbol] for end in ends(tuple(rule), start))

    def ends(rule: tuple[str, ...], start: int) -> set[int]:
        found = {start}
        for symbol in rule:
            found = {end for at in found for end in spans(symbol, at)}
        return found

    return len(words) in spans("S", 0)
