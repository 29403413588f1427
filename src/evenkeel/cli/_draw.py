"""Drawing the components of a model for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from evenkeel.cli._fold import Node, Total
from evenkeel.partition import Components

__all__ = ["Tree", "partition_table", "totals_table"]

_GAP = "  "
_LEAST = 24  # columns that labels need beside shapes and entries
_TOLD = 3  # names of a tied parameter
_UNKNOWN = ("other", "qkv")  # roles that say that no rule knew better


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One line of the tree: what leads to it, what leads past it, its label, its shapes and its entries."""

    first: str
    later: str
    label: Text
    shape: str = ""
    size: str = ""


class Tree:
    """The tree of components, with shapes and entries in columns beside it; long labels are folded."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        """Draw ``nodes``."""
        self._nodes = nodes

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Fit the columns into the width that there is."""
        rows = list(_rows(self._nodes, ("|- ", "|  ", "`- ") if options.ascii_only else ("├─ ", "│  ", "└─ ")))
        size = max((len(row.size) for row in rows), default=0)
        shape = max((len(row.shape) for row in rows), default=0)
        if options.max_width < _LEAST + shape + size + 2 * len(_GAP):  # too narrow: the shapes go behind the labels
            rows = [replace(row, label=row.label + Text(f"  {row.shape}" * bool(row.shape)), shape="") for row in rows]
            shape = 0
        beside = size + len(_GAP) + (shape + len(_GAP) if shape else 0)
        label = max((len(row.first) + row.label.cell_len for row in rows if row.size), default=0)
        label = max(1, min(label, options.max_width - beside))
        for row in rows:
            columns = label if row.size else options.max_width
            for index, text in enumerate(_wrapped(row, columns, console)):
                line = Text((row.later if index else row.first), style="dim") + text
                if row.size and not index:
                    line.pad_right(label - line.cell_len)
                    line += Text((f"{_GAP}{row.shape:<{shape}}" if shape else "") + f"{_GAP}{row.size:>{size}}")
                yield line


def _wrapped(row: _Row, columns: int, console: Console) -> list[Text]:
    if row.label.cell_len <= columns - len(row.first):
        return [row.label]
    lines = list(row.label.wrap(console, max(1, columns - len(row.later)), overflow="fold"))
    for line in lines:
        line.rstrip()
    return lines


def _rows(nodes: Sequence[Node], guides: tuple[str, str, str], before: str | None = None) -> Iterator[_Row]:
    """Yield the lines of all nodes, those of their children after each."""
    branch, past, last = guides
    for index, node in enumerate(nodes):
        final = index == len(nodes) - 1
        first = later = ""
        if before is not None:
            first, later = (before + last, before + "   ") if final else (before + branch, before + past)
        inner = later + (past if node.children else "   ")
        size = "" if node.cut else f"{node.size:,}"
        yield _Row(first=first, later=inner, label=_label(node), shape=_shape(node), size=size)
        if node.tied:
            told = ", ".join(node.tied[:_TOLD]) + (f" and {len(node.tied) - _TOLD} more" * (len(node.tied) > _TOLD))
            yield _Row(first=inner, later=inner, label=Text(f"tied with {told}", style="dim"))
        yield from _rows(node.children, guides, later)


def _label(node: Node) -> Text:
    if node.cut:
        rule = node.cut.partition(" if ")[0]  # why it holds is no part of how it cuts
        return Text(node.label) + Text(f"  cut as {rule}", style="cyan")
    if node.children:
        return Text(node.label, style="bold")
    text = Text(node.label, style="yellow" if node.role in _UNKNOWN else "")
    return text if node.role in node.label else text + Text(f" ({node.role})", style="dim")


def _shape(node: Node) -> str:
    """Write a line's shapes, or what makes up the entries of alike layers."""
    if node.cut:
        return ""
    if node.children:
        return f"{node.count} x {node.size // node.count:,}" if node.count > 1 else ""
    shapes = " + ".join(map(_written, node.shapes))
    return f"{node.count} x ({shapes})" if node.count > 1 else shapes


def totals_table(rows: Sequence[Total]) -> Table:
    """Return what each role has.

    Args:
        rows: the totals.

    Returns:
        A table with their sum as its last line.
    """
    table = Table(box=box.SIMPLE, padding=(0, 1), show_edge=False, show_footer=True)
    count, size = sum(row.components for row in rows), sum(row.size for row in rows)
    table.add_column("role", footer="all")
    for heading, footer in (("components", f"{count:,}"), ("entries", f"{size:,}"), ("share", "")):
        table.add_column(heading, footer=footer, justify="right", no_wrap=True)
    for row in rows:
        style = "yellow" if row.role in _UNKNOWN else ""
        table.add_row(row.role, f"{row.components:,}", f"{row.size:,}", _percent(row.share), style=style)
    return table


def partition_table(parts: Components, *, shapes: bool) -> Table:
    """Return a partition, one line for each of its components.

    Args:
        parts: the components.
        shapes: whether to tell shapes, which merged components do not have, instead of shares.

    Returns:
        A table.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column("component", overflow="fold")
    table.add_column("role", overflow="fold")
    table.add_column("shape" if shapes else "entries", justify="left" if shapes else "right", overflow="fold")
    table.add_column("entries" if shapes else "share", justify="right", no_wrap=True)
    for part in parts:
        size = f"{part.size:,}"
        numbers = (_written(part.shape), size) if shapes else (size, _percent(part.size / max(1, parts.size)))
        table.add_row(Text(part.path), part.role or "", *numbers)
    return table


def _written(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "1"


def _percent(share: float) -> str:
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"
