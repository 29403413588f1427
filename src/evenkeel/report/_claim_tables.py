"""The judged claims as texts, for the page, for Markdown and as CSV."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from evenkeel.report._claims import CLAIMS, Claim
from evenkeel.report._tables import as_csv, escape_markdown
from evenkeel.report._words import number

__all__ = ["CLAIM_HEADINGS", "claim_texts", "claims_csv", "claims_markdown"]

CLAIM_HEADINGS = ("claim", "verdict", "method", "effect", "interval", "what it is", "by", "n")


def claim_texts(claim: Claim) -> tuple[str, ...]:
    """Write a claim, one text for each of ``CLAIM_HEADINGS``."""
    low, high = claim.interval
    return (
        CLAIMS[claim.claim],
        claim.verdict + (f": {claim.reason}" if claim.reason else ""),
        claim.method,
        number(claim.effect),
        "-" if math.isnan(low) else f"{number(low)} to {number(high)}",
        claim.unit or "-",
        claim.test or "-",
        str(claim.n),
    )


def claims_markdown(found: Sequence[Claim]) -> str:
    """Return the claims as Markdown, a table for each task, model and recipe.

    Args:
        found: the claims.

    Returns:
        The tables. Names are escaped.
    """
    blocks = []
    for where in dict.fromkeys(claim.where for claim in found):
        rows = [
            CLAIM_HEADINGS,
            ["---"] * len(CLAIM_HEADINGS),
            *(map(escape_markdown, claim_texts(claim)) for claim in found if claim.where == where),
        ]
        blocks.append(f"**{escape_markdown(where)}**\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(blocks) + "\n"


def claims_csv(found: Sequence[Claim]) -> str:
    """Return the claims as CSV, all digits.

    Args:
        found: the claims.

    Returns:
        The table, whose columns are the fields of :class:`Claim`; an interval takes two.
    """
    names = [field.name for field in dataclasses.fields(Claim)]
    heads = [part for name in names for part in (("low", "high") if name == "interval" else (name,))]
    return as_csv(heads, [list(_values(claim, names)) for claim in found])


def _values(claim: Claim, names: Sequence[str]) -> Iterator[object]:
    for name in names:
        if name == "interval":
            yield from claim.interval
        else:
            yield getattr(claim, name)
