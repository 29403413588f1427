from __future__ import annotations

import builtins
import shutil
from typing import Any

import pytest

from evenkeel.errors import MissingExtraError, ReportError
from evenkeel.report import export_figures, load_study


def test_an_unknown_format_is_refused(make_study, tmp_path) -> None:
    with pytest.raises(ReportError, match="figures can be written as svg, pdf, png, and not as 'gif'"):
        list(export_figures(load_study(make_study({"full": [0.7]})), tmp_path, "gif"))


def test_without_the_extra_it_is_named(make_study, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "kaleido":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'evenkeel\[figures\]'"):
        list(export_figures(load_study(make_study({"full": [0.7]})), tmp_path, "svg"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize(("kind", "begins"), [("svg", b"<svg"), ("pdf", b"%PDF"), ("png", b"\x89PNG")])
def test_figures_are_drawn_for_paper(make_study, tmp_path, kind: str, begins: bytes) -> None:
    pytest.importorskip("kaleido")
    written = list(export_figures(load_study(make_study({"full": [0.7, 0.5]})), tmp_path / "figures", kind))
    assert written[0].name == f"01-rte-tiny-scores.{kind}"
    assert all(path.read_bytes().startswith(begins) for path in written)
