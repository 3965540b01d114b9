"""A report that was saved beside its page comes back as it was."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from test_report import HOSTILE, example, full

from reclora.files import read_parquet, write_parquet
from reclora.pipelines.yardstick import BASE
from reclora.report import Report, Section, markdown, plotly_figures, read_report, write_report
from tests.small_runs import finished


def check_same(found: Report, expected: Report) -> None:
    for each in fields(Report):
        one, other = getattr(found, each.name), getattr(expected, each.name)
        if isinstance(other, pd.DataFrame):
            pd.testing.assert_frame_equal(one, other, obj=each.name)
        elif each.name != "sections":
            assert one == other, each.name
    for section, its in zip(found.sections, expected.sections, strict=True):
        assert (section.title, section.text) == (its.title, its.text)
        pd.testing.assert_frame_equal(section.table, its.table)


@pytest.mark.parametrize(
    "report",
    [
        full(),
        example(HOSTILE),
        replace(example(), curves=pd.DataFrame(), split=pd.DataFrame(), notes=HOSTILE[:1]),
        replace(
            full(),
            settings={"of": {"nothing": None, "odd": "\ud800"}, "list": []},
            sections=[Section("<b>", "none", pd.DataFrame()), Section("a", "", example().means)],
        ),
    ],
    ids=["full", "hostile", "without curves", "odd"],
)
def test_a_saved_report_is_the_same(report: Report, tmp_path: Path) -> None:
    page = write_report(tmp_path / "report.html", report)
    report = replace(report, notes=list(report.notes))
    for path in (page, tmp_path):
        check_same(read_report(path), report)


def test_numbers_of_numpy_are_pythons_own(tmp_path: Path) -> None:
    report = replace(
        example(), data_quality={"rows": np.int64(3)}, settings={"lr": np.float64(0.1)}
    )
    found = read_report(write_report(tmp_path / "report.html", report))
    assert found.data_quality == {"rows": 3} and found.settings == {"lr": 0.1}


def test_a_finished_run_gives_its_page_again(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    settings, outcome = finished(tmp_path_factory)
    run = outcome.folder.path
    report = read_report(run)
    assert report.run == run.name and report.baseline == BASE
    lifts = read_parquet(run / "comparison.parquet").to_pandas()
    pd.testing.assert_frame_equal(report.lifts, lifts, check_dtype=False)
    assert len(report.segments) == len(outcome.decisions.table)
    assert {"lift", "by_k", "curves", "spectra"} <= set(plotly_figures(report))
    assert markdown(report) == (run / "report.md").read_text(encoding="utf-8")
    again = write_report(tmp_path / "again.html", report)
    assert again.read_bytes() == outcome.folder.report.read_bytes()


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has a page, with report\.parquet in it, got .*nowhere"):
        read_report(tmp_path / "nowhere" / "report.html")
    page = write_report(tmp_path / "report.html", example())
    file = page.with_suffix(".parquet")
    table = read_parquet(file)
    write_parquet(file, table.replace_schema_metadata({}))
    with pytest.raises(ValueError, match="is damaged, or no report"):
        read_report(page)
    file.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="is damaged, or no report"):
        read_report(page)
    write_parquet(file, pa.table({}).replace_schema_metadata({b"reclora report": b'{"format": 2}'}))
    with pytest.raises(ValueError, match="is of format 2, this reclora reads 1"):
        read_report(page)
