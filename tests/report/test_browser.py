"""The page in a real browser: no errors, no requests, everything drawn, every control does what it says."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evenkeel.report import write_report

pytestmark = pytest.mark.slow

BROWSER = "EVENKEEL_BROWSER"  # a browser that must be there: with it, nothing is skipped
HOSTILE = "<img src=x onerror=alert(1)>"
FATES = {
    "full": [0.55, 0.7, 0.5, 0.69, 0.72, "diverged", "error"],
    "component-clip": [0.7, 0.72, 0.5, 0.71, 0.7, 0.73, "queued"],
    HOSTILE: [0.7, 0.69, 0.71, 0.5, 0.72, 0.7, 0.7],
}
TABLES = ("log", "telemetry", "course", "predictions", "replacement")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    wanted = os.environ.get(BROWSER)
    program = wanted or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip(f"there is no Chromium on this machine; install one, or let {BROWSER} name it")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        made = started.chromium.launch(executable_path=program, args=[*quiet, "--disable-sync", "--no-first-run"])
        yield made
        made.close()


@pytest.fixture
def page(browser: Any, make_study: Any) -> Iterator[Any]:
    """Open the report of a study with everything in it, and see in the end that nothing went wrong."""
    path = write_report(make_study(FATES, tables=TABLES))
    wrong: list[str] = []
    context = browser.new_context(accept_downloads=True)
    opened = context.new_page()
    opened.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    opened.on("request", lambda request: wrong.append(request.url) if not local(request.url) else None)
    opened.goto(path.as_uri())
    yield opened
    context.close()
    assert wrong == []


def local(url: str) -> bool:
    return url.startswith(("file:", "blob:", "data:"))


def until(page: Any, expression: str) -> None:
    """Wait for something to be so; Playwright's own way would need a policy that lets the page evaluate texts."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"it never came to be that {expression}")


def draw_all(page: Any) -> int:
    """Scroll through the page as a reader would, and count the figures that are drawn."""
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    until(page, "[...document.querySelectorAll('.figure')].every(f => f.querySelector('.main-svg'))")
    return int(page.locator(".figure").count())


def colours(page: Any, place: int) -> Any:
    return page.evaluate(f"document.querySelectorAll('.explorer .figure')[{place}].data[0].z")


def test_every_figure_is_drawn_and_nothing_is_asked_of_a_network(page: Any) -> None:
    assert draw_all(page) == 2 + 3 + 3 + 6 + 3  # scores, budget; losses; courses; maps; layers put back
    assert page.locator(".figure .scatterlayer .trace").count() > 10
    assert page.locator("img").count() == 0  # the method's name is a name


def test_figures_come_into_sight_by_scrolling(page: Any) -> None:
    drawn = "[...document.querySelectorAll('.figure')].filter(f => f.dataset.drawn).length"
    before = page.evaluate(drawn)
    assert before < page.locator(".figure").count()
    page.locator("h3", has_text="Layer replacement").scroll_into_view_if_needed()
    until(page, f"{drawn} > {before}")


def test_the_slider_moves_through_training_and_the_choice_changes_the_measure(page: Any) -> None:
    draw_all(page)
    whole = colours(page, 0)
    slider, said = page.locator(".explorer input[type=range]"), page.locator(".explorer output")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert said.inner_text() == "0 to 10 %"
    before = json.dumps(whole, separators=(",", ":"))
    until(page, f"JSON.stringify(document.querySelector('.explorer .figure').data[0].z) !== {before!r}")
    page.locator(".explorer select").select_option("half_time")
    assert slider.is_disabled()
    assert said.inner_text() == "all of it"
    assert "covered half" in page.locator(".explorer p.how").inner_text()
    until(page, "document.querySelector('.explorer .figure').data[0].colorbar.title.text === 'share'")


def test_runs_are_found_and_opened_by_keyboard(page: Any) -> None:
    shown = page.locator("table.runs tbody tr:visible")
    assert shown.count() == 21
    page.locator(".runs-filter select").select_option("diverged")
    assert shown.count() == 1
    page.locator(".runs-filter select").select_option("")
    page.locator(".runs-filter input").fill("component-clip 0.5000")
    assert shown.count() == 1
    assert page.locator(".runs-filter span").inner_text() == "1 of 21 runs"
    button = shown.locator("button")
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    assert dialog.locator("h3").inner_text() == "rte, tiny, component-clip, seed 3"
    assert dialog.locator(".main-svg").count() >= 3  # loss, norm, score, rate
    assert "learning rate" in dialog.inner_text()
    assert "torch" in dialog.inner_text()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_what_went_wrong_with_a_run_is_shown_as_text(page: Any) -> None:
    page.locator(".runs-filter select").select_option("error")
    page.locator("table.runs tbody tr:visible button").click()
    assert "ValueError: <b>no such thing</b>" in page.locator("dialog pre").inner_text()


def test_data_and_picture_are_saved(page: Any) -> None:
    draw_all(page)
    with page.expect_download() as waited:
        page.locator(".panel button[data-save=csv]").first.click()
    saved = Path(waited.value.path()).read_text(encoding="utf-8")
    assert waited.value.suggested_filename == "evenkeel-scores.csv"
    assert saved.splitlines()[0] == "trace,x,y,value,text"
    assert "seed 2: 0.700" in saved
    with page.expect_download() as waited:
        page.locator(".panel button[data-save=svg]").first.click()
    assert waited.value.suggested_filename == "evenkeel-scores.svg"
    assert Path(waited.value.path()).read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_shows_it_without_scrolling_sideways(browser: Any, make_study: Any, scheme: str) -> None:
    path = write_report(make_study(FATES, tables=TABLES))
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    opened = context.new_page()
    opened.goto(path.as_uri())
    draw_all(opened)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()
