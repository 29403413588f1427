"""The figures of a report as files for a paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from evenkeel.errors import MissingExtraError, ReportError
from evenkeel.report._frames import LoadedStudy

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["FORMATS", "export_figures"]

FORMATS = ("svg", "pdf", "png")
_WIDTH = 640  # pixels of 1/96 inch: the text width of a page, about


def export_figures(study: LoadedStudy, folder: Path, kind: str) -> Iterator[Path]:
    """Write every figure of a study's report into a folder, dark on white.

    Args:
        study: the study.
        folder: where to; made if it is not there.
        kind: one of ``FORMATS``.

    Yields:
        Each file once it is written.

    Raises:
        MissingExtraError: if the extra ``figures`` is not installed.
        ReportError: if the format is unknown, there is no browser to draw with, or a file cannot be written.
    """
    if kind not in FORMATS:
        raise ReportError(f"figures can be written as {', '.join(FORMATS)}, and not as {kind!r}")
    try:
        import kaleido  # noqa: F401  it draws what Plotly writes
    except ImportError as error:
        raise MissingExtraError(
            "figures as files need kaleido, which is not installed: pip install 'evenkeel[figures]'"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (name, figure) in enumerate(study.figures.items(), start=1):
            path = folder / f"{number:02}-{_slug(name)}.{kind}"
            _on_paper(figure).write_image(path, format=kind, width=_WIDTH, height=int(figure.layout.height))
            yield path
    except OSError as error:
        raise ReportError(f"'{folder}' cannot be written ({error.strerror}); choose another folder") from error
    except Exception as error:  # kaleido and its browser have many ways to say no
        raise ReportError(
            f"the figures could not be drawn ({type(error).__name__}: {(str(error).splitlines() or [''])[0]}); kaleido "
            "needs Chrome or Chromium: install one, or save single figures from the page"
        ) from error


def _on_paper(figure: go.Figure) -> go.Figure:
    import plotly.graph_objects as go

    made = go.Figure(figure)
    made.update_layout(paper_bgcolor="white", plot_bgcolor="white", font={"color": "black"}, margin={"t": 30})
    return made


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:80]
