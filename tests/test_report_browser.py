"""Tests of reclora/report in a real browser: it draws, fetches nothing, runs nothing of a log."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait
from test_report import HOSTILE, NAMES, example, full

from reclora.report import Report, write_report
from reclora.report.text import number, signed

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--window-size=1280,900",
)
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    DRIVER is None or shutil.which("chromium") is None,
    reason="needs chromium and chromedriver (Debian: apt-get install chromium-driver)",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def open_page(browser: Chrome, report: Report, folder: Path) -> None:
    """Load the page and hold it to what every page keeps: no console message, nothing fetched."""
    browser.get(write_report(folder / "report.html", report).as_uri())
    assert browser.get_log("browser") == []
    asked = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert asked == []


def drawn(browser: Chrome, shows: str) -> WebElement:
    """The chart, scrolled to and drawn."""
    figure = browser.find_element(By.CSS_SELECTOR, f"figure:has([data-shows={shows}]) .chart")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    WebDriverWait(browser, 10).until(lambda page: figure.find_elements(By.TAG_NAME, "svg"))
    return figure


def points(browser: Chrome, shows: str) -> int:
    return len(drawn(browser, shows).find_elements(By.CSS_SELECTOR, ".scatterlayer .points .point"))


def table_of(browser: Chrome, name: str) -> list[list[str]]:
    """The rows of a table as they are shown."""
    return browser.execute_script(
        "return [...document.querySelector(arguments[0]).tBodies[0].rows]"
        ".map(row => [...row.cells].map(cell => cell.textContent))",
        f"table[aria-label='{name}']",
    )


def sort_by(browser: Chrome, name: str, column: str) -> None:
    heads = browser.find_elements(By.CSS_SELECTOR, f"table[aria-label='{name}'] th")
    (head,) = [head for head in heads if head.get_attribute("textContent") == column]
    browser.execute_script("arguments[0].click()", head)


def test_charts_are_drawn_and_the_answer_is_on_the_first_screen(
    browser: Chrome, tmp_path: Path
) -> None:
    open_page(browser, example(), tmp_path)
    lead = browser.find_element(By.CLASS_NAME, "lead")
    assert "+.0134" in lead.text
    table = browser.find_element(By.CSS_SELECTOR, "#models table").rect
    assert lead.is_displayed() and table["y"] + table["height"] < 900
    assert points(browser, "lift") == 1 + len(NAMES)
    assert points(browser, "sizes") == len(NAMES)
    assert points(browser, "curves") == 8 * len(NAMES)
    labels = browser.find_elements(By.CSS_SELECTOR, ".chart .ytick text")
    assert {"All segments", *NAMES} <= {label.text for label in labels}


def test_every_chart_is_drawn_and_said_in_words(browser: Chrome, tmp_path: Path) -> None:
    open_page(browser, full(), tmp_path)
    for shows in ("lift", "sizes", "by_k", "curves", "spectra"):
        assert points(browser, shows) > 4, shows
        assert len(drawn(browser, shows).get_attribute("aria-label") or "") > 60
    assert browser.get_log("browser") == []


def test_tables_sort_by_what_their_cells_mean(browser: Chrome, tmp_path: Path) -> None:
    names = tuple(f"tenant {i}" for i in range(120))
    report = full(names)
    open_page(browser, report, tmp_path)
    assert len(table_of(browser, "Segments")) == 50
    table = report.by_segment()
    sort_by(browser, "Segments", "users")
    users = [int(row[7]) for row in table_of(browser, "Segments")]
    assert users == [943, *sorted(table["users"], reverse=True)][:50]
    sort_by(browser, "Segments", "users")
    assert [int(row[7]) for row in table_of(browser, "Segments")] == sorted(table["users"])[:50]
    sort_by(browser, "Segments", "lift")
    lifts = [row[1] for row in table_of(browser, "Segments")]
    assert lifts[0] == signed(table["difference"].max())
    sort_by(browser, "Segments", "lift")
    lifts = [row[1] for row in table_of(browser, "Segments")]
    assert lifts[0] == signed(table["difference"].min()) and lifts[0].startswith("−")
    sort_by(browser, "Segments", "95 % interval")
    bounds = [row[3] for row in table_of(browser, "Segments")]
    assert bounds[0].startswith(f"[{number(table['low'].max())},")
    # What nobody knows stands last in both directions.
    sort_by(browser, "Segments", "best epoch")
    first = table_of(browser, "Segments")[0]
    assert "–" not in first[-1]
    sort_by(browser, "Segments", "best epoch")
    assert "–" not in table_of(browser, "Segments")[0][-1]


def test_tables_filter_by_name_and_verdict_and_show_more(browser: Chrome, tmp_path: Path) -> None:
    names = tuple(f"tenant {i}" for i in range(120))
    report = full(names)
    open_page(browser, report, tmp_path)
    box = "div.table:has(table[aria-label='Segments'])"
    words = browser.find_element(By.CSS_SELECTOR, f"{box} input")
    words.send_keys("TENANT 11")
    found = {row[0] for row in table_of(browser, "Segments")}
    assert found == {"tenant 11", *(f"tenant {i}" for i in range(110, 120))}
    words.clear()
    words.send_keys(Keys.ENTER)
    select = Select(browser.find_element(By.CSS_SELECTOR, f"{box} select"))
    select.select_by_value("worse")
    table = report.by_segment()
    worse = set(table.loc[table["verdict"] == "worse", "segment"])
    rows = table_of(browser, "Segments")
    assert {row[0] for row in rows} == worse and all(row[2] == "▼ worse" for row in rows)
    assert (
        f"{len(worse)} of {len(worse)} rows"
        in browser.find_element(By.CSS_SELECTOR, f"{box} .more").text
    )
    select.select_by_value("")
    button = browser.find_element(By.CSS_SELECTOR, f"{box} > button")
    browser.execute_script("arguments[0].click()", button)
    assert len(table_of(browser, "Segments")) == 121 and not button.is_displayed()
    assert browser.get_log("browser") == []


def test_a_page_prints_with_every_chart(browser: Chrome, tmp_path: Path) -> None:
    open_page(browser, full(), tmp_path)
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    for chart in browser.find_elements(By.CLASS_NAME, "chart"):
        WebDriverWait(browser, 10).until(lambda page, c=chart: c.find_elements(By.TAG_NAME, "svg"))
    pdf = base64.b64decode(browser.print_page())
    assert pdf.startswith(b"%PDF") and len(pdf) > 20_000
    assert browser.get_log("browser") == []


def test_hovering_a_dot_tells_its_numbers(browser: Chrome, tmp_path: Path) -> None:
    open_page(browser, example(HOSTILE[:2]), tmp_path)
    dots = browser.find_elements(By.CSS_SELECTOR, ".chart .points .point")
    found = set()
    for dot in dots[:3]:
        ActionChains(browser).scroll_to_element(dot).move_to_element(dot).perform()
        hover = WebDriverWait(browser, 5).until(
            lambda page: page.find_elements(By.CSS_SELECTOR, ".hoverlayer .hovertext")
        )
        found.add(hover[0].text)
    assert any("+.0134 [.0101, .0167]" in text and "better, 943 users" in text for text in found)
    assert any("onerror=" in text and "<img" in text for text in found), found


def test_hostile_names_run_nothing_and_show_as_text(browser: Chrome, tmp_path: Path) -> None:
    report = replace(example(HOSTILE), notes=HOSTILE, run=HOSTILE[0], repeat=HOSTILE[1])
    open_page(browser, report, tmp_path)
    assert browser.title == report.title
    assert points(browser, "lift") == 1 + len(HOSTILE)
    assert browser.find_elements(By.CSS_SELECTOR, "img, .chart a, .chart iframe") == []
    labels = [label.text for label in browser.find_elements(By.CSS_SELECTOR, ".chart .ytick text")]
    assert "</script><script>document.t…" in labels and "{{7*7}}{% raw %}" in labels
    body = browser.find_element(By.TAG_NAME, "body").text
    assert all(name in body for name in HOSTILE[:4])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_stand_out_in_both_themes(
    browser: Chrome, tmp_path: Path, scheme: str
) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    open_page(browser, example(), tmp_path)
    page = colour(browser, "body", "background-color")
    assert luminance(page) < 0.05 if scheme == "dark" else luminance(page) > 0.9
    for selector in ("body", ".run", ".lead .better", "td .cannot-tell", "dt", "th"):
        assert contrast(colour(browser, selector, "color"), page) >= 4.5, selector
    for selector in (".chart .ytick text", ".chart .legendtext", ".chart .g-xtitle text"):
        assert contrast(colour(browser, selector, "fill"), page) >= 4.5, selector
    for mark in browser.find_elements(By.CSS_SELECTOR, ".chart .points .point"):
        fill, stroke = (mark.value_of_css_property(name) for name in ("fill", "stroke"))
        assert contrast(parse(fill if stroke == "none" else stroke), page) >= 3


@pytest.mark.slow
def test_ten_thousand_segments_open_at_once(browser: Chrome, tmp_path: Path) -> None:
    report = example(tuple(f"tenant {i}" for i in range(10_000)))
    seconds = []
    for _ in range(3):  # the best of three: the machine may be busy with something else
        open_page(browser, report, tmp_path)
        seconds.append(
            browser.execute_script(
                "return performance.timing.loadEventEnd - performance.timing.navigationStart"
            )
            / 1000
        )
    assert min(seconds) < 2
    assert points(browser, "lift") == 41
    sort_by(browser, "Segments", "users")
    assert len(table_of(browser, "Segments")) == 50


def parse(css: str) -> tuple[float, ...]:
    return tuple(float(part) for part in css[css.index("(") + 1 : -1].split(",")[:3])


def colour(browser: Chrome, selector: str, property_name: str) -> tuple[float, ...]:
    return parse(
        browser.find_element(By.CSS_SELECTOR, selector).value_of_css_property(property_name)
    )


def luminance(rgb: tuple[float, ...]) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
