"""What a terminal shows: names to the left, figures to the right."""

import io

from rich.console import Console

from reclora.pipelines.terminal import number, table_of


def test_a_name_and_its_figures() -> None:
    table = table_of("by rank", "model", "mean")
    table.add_row("a long name", number(0.125))
    table.add_row("b", number(float("nan")))
    console = Console(file=io.StringIO(), width=60)
    console.print(table)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert lines[0] == "by rank"
    assert "  model          mean" in lines and "  a long name   .1250" in lines and "  b" in lines


def test_numbers_have_no_zero_before_the_point() -> None:
    assert [number(x) for x in (0.5, -0.25, 1.0, 0.0)] == [".5000", "-.2500", "1.0000", ".0000"]
