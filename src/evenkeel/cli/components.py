"""``evenkeel components``: what a model is made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from evenkeel.partition import Component, Components

__all__ = ["components"]

_LISTED = 12  # names of what no rule knows; --json has them all


def components(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, a config.json, a hub id, or tiny, which is built in.")
    ],
    by: Annotated[
        str | None, typer.Option(help="Print a table of the partition by tensor, module, role, layer or global.")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="sequence-classification, causal-lm, masked-lm, base, ...; else what the model names."),
    ] = None,
    roles: Annotated[Path | None, typer.Option(help="Your own rules, a TOML file; see docs/components.md.")] = None,
    unfolded: Annotated[bool, typer.Option("--all", help="Every component of the tree on its own line.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all components as JSON, and nothing else.")] = False,
) -> None:
    """Show what a model is made of: its layers, their components, and how fused tensors are cut.

    Only the configuration is read; weights are neither loaded nor downloaded.
    """
    import evenkeel.partition
    from evenkeel.cli._console import console

    built = _built(model, head)
    parts = evenkeel.partition.components(built, by or "tensor", roles=roles)  # type: ignore[arg-type]  # checked there
    if as_json:
        typer.echo("[\n" + ",\n".join(_as_json(part) for part in parts) + "\n]")
        return
    config: Any = built.config
    count = f"{len(parts):,} component" + "s" * (len(parts) != 1)
    console.print(
        f"{model}: {type(built).__name__} ({config.model_type}), {count}, {parts.size:,} entries",
        style="bold",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if by is None:
        _show(console, parts, alike=not unfolded)
        return
    from evenkeel.cli._draw import partition_table

    console.print(partition_table(parts, shapes=by == "tensor"))


def _built(model: str, head: str | None) -> Any:
    import logging

    import transformers

    from evenkeel.models import structure

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its advice is for those who train
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every retry
    return structure(model, head=head)


def _show(console: Console, parts: Components, *, alike: bool) -> None:
    """Print the tree, the totals, and what is not known."""
    from evenkeel.cli._draw import Tree, totals_table
    from evenkeel.cli._fold import fold, names_alike, totals, uncut

    console.print(Tree(fold(parts, alike=alike)))
    console.print()
    console.print(totals_table(totals(parts)))
    console.print()
    unclaimed = parts.unclaimed
    if not unclaimed:
        console.print("Every entry has a role: nothing is unclaimed.", highlight=False)
    whole = uncut(parts)
    for title, names in (
        (f"unclaimed, no rule knows them: {unclaimed.size:,} entries", names_alike(unclaimed)),
        ("fused and not cut, no rule says how they lie", names_alike(whole)),
    ):
        if names:
            console.print(title, style="yellow", markup=False, highlight=False)
            for name, count in list(names.items())[:_LISTED]:
                console.print(f"  {name}" + f"  ({count} alike)" * (count > 1), markup=False, highlight=False)
            if len(names) > _LISTED:
                console.print(f"  and {len(names) - _LISTED} more; --json has them all", highlight=False)
    if unclaimed or whole:
        console.print("Rules of your own, given with --roles, can say what they are.", highlight=False)


def _as_json(part: Component) -> str:
    import json

    fields = ("name", "path", "stack", "layer", "role", "kind", "shape", "size", "cut", "aliases", "shared")
    return json.dumps({field: getattr(part, field) for field in fields})
