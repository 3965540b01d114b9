"""Online Retail as a log: one cleaning, one log from every form of the table, errors by row."""

import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclora.datasets.online_retail import OnlineRetailError, read, write_log
from reclora.files import read_parquet
from reclora.interactions import LogContract, prepare_log

COLUMNS = (
    "InvoiceNo StockCode Description Quantity InvoiceDate UnitPrice CustomerID Country".split()
)
TIME = datetime(2010, 12, 1, 8, 26)
LATER = datetime(2011, 12, 9, 12, 50, 7)
ROWS = (
    (536365, "85123A", " WHITE LANTERN ", 6, LATER, 2.55, 17850.0, "United Kingdom"),
    (536365, 71053, "WHITE LANTERN", 1, TIME, 0.001, 17850.0, "EIRE"),
    (536370, "POST", "POSTAGE", 3, TIME, 18.0, 12583.0, " France"),
    (536371, "20713", 20713, 3, TIME, 18.0, 12583.0, "France"),
    ("C53637", "22556", "CANCELLED", -1, TIME, 1.0, 17850.0, "EIRE"),
    (536372, "22556", "NONE", 0, TIME, 1.0, 17850.0, "EIRE"),
    (536373, "22556", "A PRESENT", 1, TIME, 0.0, 17850.0, "EIRE"),
    (536374, "22556", "BAD DEBT", 1, TIME, -11062.06, 17850.0, "EIRE"),
    (536375, "22556", "NO CUSTOMER", 1, TIME, 1.0, None, "EIRE"),
    (536376, "22556", None, 1, TIME, 1.0, 17850.0, "EIRE"),
    (536377, "22556", "  ", 1, TIME, 1.0, 17850.0, "EIRE"),
)
LOG = [
    (12583, "20713", TIME.replace(tzinfo=UTC), "France"),
    (12583, "POSTAGE", TIME.replace(tzinfo=UTC), "France"),
    (17850, "WHITE LANTERN", TIME.replace(tzinfo=UTC), "EIRE"),
    (17850, "WHITE LANTERN", LATER.replace(tzinfo=UTC), "United Kingdom"),
]
GOOD = "A LAMP,6,2010-12-01 08:26:00,2.55,17850,EIRE\n"
HEADER = "Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"


def table() -> pd.DataFrame:
    return pd.DataFrame(list(ROWS), columns=pd.Index(COLUMNS), dtype=object)


def found(folder: Path) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in read(folder).to_pylist()]


def write(folder: Path, name: str, frame: pd.DataFrame) -> None:
    """Write a table in the form that its name says."""
    if name.endswith(".xlsx"):
        frame.to_excel(folder / name, index=False)
    elif name.endswith(".csv"):
        frame.to_csv(folder / name, index=False)
    else:
        typed = {"Quantity": "int32", "UnitPrice": "float64", "CustomerID": "float64"}
        texts = {name: "str" for name in ("InvoiceNo", "StockCode", "Description", "Country")}
        types = {**typed, **texts, "InvoiceDate": "datetime64[ns]"}
        frame = frame.astype({name: types[name] for name in frame.columns})
        frame.to_parquet(folder / name)


@pytest.mark.parametrize(
    "name", ["Online Retail.xlsx", "online_retail.csv", "online_retail.parquet"]
)
@pytest.mark.parametrize("codes", [True, False])
def test_each_form_gives_one_log(tmp_path: Path, name: str, codes: bool) -> None:
    write(tmp_path, name, table() if codes else table()[COLUMNS[2:]])
    assert found(tmp_path) == LOG
    assert read(tmp_path).schema.equals(
        pa.schema(
            {
                "user_id": pa.int64(),
                "item_id": pa.string(),
                "timestamp": pa.timestamp("us", tz="UTC"),
                "segment": pa.string(),
            }
        )
    )


def test_the_written_log_keeps_the_contract(tmp_path: Path) -> None:
    write(tmp_path, "online_retail.parquet", table())
    out = write_log(tmp_path, tmp_path / "logs" / "log.parquet")
    assert read_parquet(out).equals(read(tmp_path))
    assert [file.name for file in out.parent.iterdir()] == ["log.parquet"]
    summary = prepare_log([out], tmp_path / "log", LogContract())
    assert (summary.rows_kept, summary.quarantined, summary.duplicates) == (4, {}, 0)
    assert sorted(summary.segments) == ["EIRE", "France", "United Kingdom"]


def test_a_csv_may_have_the_months_first(tmp_path: Path) -> None:
    (tmp_path / "Online Retail.csv").write_bytes(
        HEADER.encode()
        + b'"A ""SMALL"" LAMP, RED",6,12/1/2010 8:26,2.55,17850,EIRE\r\n'
        + b"A LAMP,6,1/31/2011 18:05,2.55,17850,EIRE"
    )
    assert found(tmp_path) == [
        (17850, 'A "SMALL" LAMP, RED', TIME.replace(tzinfo=UTC), "EIRE"),
        (17850, "A LAMP", datetime(2011, 1, 31, 18, 5, tzinfo=UTC), "EIRE"),
    ]


@given(
    rows=st.lists(
        st.tuples(
            st.none() | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=6),
            st.integers(-3, 3),
            st.datetimes(datetime(2010, 1, 1), datetime(2012, 1, 1)),
            st.floats(-1, 1, allow_subnormal=False),
            st.none() | st.integers(1, 99_999),
            st.sampled_from(("EIRE", "日本", "Unspecified")),
        ),
        max_size=8,
    )
)
def test_the_cleaning_is_the_rule_row_by_row(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[object, ...]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    names = HEADER.strip().split(",")
    frame = pd.DataFrame(rows, columns=pd.Index(names), dtype=object)
    frame["InvoiceDate"] = frame["InvoiceDate"].map(lambda at: at.replace(microsecond=0))
    write(folder, "online_retail.parquet", frame)
    expected = [
        (user, item.strip(), time.replace(microsecond=0, tzinfo=UTC), country)
        for item, quantity, time, price, user, country in rows
        if user is not None and quantity > 0 and price > 0 and item and item.strip()
    ]
    if not expected:
        with pytest.raises(OnlineRetailError, match=f"found none among {len(rows)}"):
            read(folder)
        return
    expected.sort(key=lambda row: (row[2], row[0], row[1].encode(), row[3].encode()))
    assert found(folder) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("A LAMP,six,2010-12-01 08:26:00,1,17850,EIRE", "a whole number in Quantity, got 'six'"),
        ("A LAMP,1.5,2010-12-01 08:26:00,1,17850,EIRE", "a whole number in Quantity, got '1.5'"),
        ("A LAMP,,2010-12-01 08:26:00,1,17850,EIRE", "a value in Quantity, got nothing"),
        ("A LAMP,6,2010-13-01 08:26:00,1,17850,EIRE", "a time such as .*got '2010-13-01 08:26:00'"),
        ("A LAMP,6,31/12/2010 8:26,1,17850,EIRE", "a time such as .*got '31/12/2010 8:26'"),
        ("A LAMP,6,2010-12-01 08:26:00+01:00,1,17850,EIRE", "a time such as .*InvoiceDate"),
        ("A LAMP,6,1291191960,1,17850,EIRE", "a time such as .*got '1291191960'"),
        ("A LAMP,6,,1,17850,EIRE", "a value in InvoiceDate, got nothing"),
        ("A LAMP,6,2010-12-01 08:26:00,'1',17850,EIRE", "a number in UnitPrice"),
        ("A LAMP,6,2010-12-01 08:26:00,inf,17850,EIRE", "a number in UnitPrice, got 'inf'"),
        ("A LAMP,6,2010-12-01 08:26:00,nan,17850,EIRE", "a number in UnitPrice, got 'nan'"),
        ("A LAMP,6,2010-12-01 08:26:00,,17850,EIRE", "a value in UnitPrice, got nothing"),
        ("A LAMP,6,2010-12-01 08:26:00,1,x,EIRE", "a whole number in CustomerID, got 'x'"),
        ("A LAMP,6,2010-12-01 08:26:00,1,1e300,EIRE", "a whole number in CustomerID, got '1e300'"),
        ("A LAMP,6,2010-12-01 08:26:00,1,17850,", "a value in Country, got nothing"),
        ("A LAMP,6,2010-12-01 08:26:00,1,17850, ", "a value in Country, got nothing"),
        ("A LAMP,6,2010-12-01 08:26:00,1,17850", "a table in UTF-8 and commas"),
        (HEADER.strip(), "a time such as 2010-12-01 08:26:00 in InvoiceDate, got 'InvoiceDate'"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "Online Retail.csv").write_text(HEADER + GOOD + line + "\n" + GOOD)
    with pytest.raises(OnlineRetailError, match=f"Online Retail.csv: row 3: expected {message}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "row"),
    [("Online Retail.xlsx", 4), ("Online Retail.csv", 4), ("Online Retail.parquet", 3)],
)
def test_a_row_is_counted_as_its_form_shows_it(tmp_path: Path, name: str, row: int) -> None:
    frame = table()
    frame.loc[2, "Country"] = None
    write(tmp_path, name, frame)
    with pytest.raises(OnlineRetailError, match=f"{name}: row {row}: .*Country, got nothing"):
        read(tmp_path)


@pytest.mark.parametrize(("column", "value"), [("Quantity", "six"), ("InvoiceDate", 40513)])
def test_a_cell_of_another_type_is_named(tmp_path: Path, column: str, value: object) -> None:
    frame = table()
    frame.loc[1, column] = value
    write(tmp_path, "Online Retail.xlsx", frame)
    with pytest.raises(OnlineRetailError, match=f"row 3: expected .* in {column}, got {value!r}"):
        read(tmp_path)


@pytest.mark.parametrize(
    "name", ["Online Retail.xlsx", "Online Retail.csv", "Online Retail.parquet"]
)
def test_a_column_is_needed_once(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, table().drop(columns="Country"))
    with pytest.raises(OnlineRetailError, match="expected the column 'Country' once, got 0 of it"):
        read(tmp_path)
    if not name.endswith(".parquet"):
        frame = table()
        frame.columns = pd.Index([*COLUMNS[:1], "Country", *COLUMNS[2:]])
        write(tmp_path, name, frame)
        with pytest.raises(OnlineRetailError, match="the column 'Country' once, got 2 of it"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("Online Retail.csv", b"", "expected a table in UTF-8 and commas: Empty CSV file"),
        ("Online Retail.csv", HEADER.encode(), "expected rows with a CustomerID.*among 0"),
        ("Online Retail.csv", b"Caf\xe9," + HEADER.encode(), "expected a table in UTF-8"),
        ("Online Retail.csv", HEADER.encode("utf-16"), "expected a table in UTF-8"),
        ("Online Retail.csv", (HEADER + GOOD + "\n" + GOOD).encode(), "row 3: .* got nothing"),
        (
            "Online Retail.csv",
            (HEADER + GOOD).encode() + b"CAF\xc9,6,2010-12-01 08:26:00,1,17850,EIRE\n",
            "row 3: expected a table in UTF-8",
        ),
        (
            "Online Retail.csv",
            HEADER.replace(",", ";").encode(),
            "expected the column 'Description'",
        ),
        ("Online Retail.xlsx", b"", "not a whole .xlsx file"),
        ("Online Retail.xlsx", b"PK\x03\x04 no more", "not a whole .xlsx file"),
        ("Online Retail.parquet", b"", "not a whole Parquet file"),
        ("Online Retail.parquet", b"PAR1PAR1", "not a whole Parquet file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(OnlineRetailError, match=f"{name}: {message}"):
        write_log(tmp_path, tmp_path / "out" / "log.parquet")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("part", "right", "wrong"),
    [
        ("xl/workbook.xml", b'sheetId="1"', b'sheetId="x"'),
        ("[Content_Types].xml", b"Override", b"Overwrite"),
        ("xl/worksheets/sheet1.xml", b"</row>", b"</wor>"),
    ],
)
def test_a_workbook_with_a_damaged_part_is_named(
    tmp_path: Path, part: str, right: bytes, wrong: bytes
) -> None:
    """A TypeError, an OSError and a ParseError of openpyxl's."""
    path = tmp_path / "Online Retail.xlsx"
    write(tmp_path, path.name, table())
    with zipfile.ZipFile(path) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    assert right in parts[part]
    with zipfile.ZipFile(path, "w") as book:
        for name, data in parts.items():
            book.writestr(name, data.replace(right, wrong) if name == part else data)
    with pytest.raises(OnlineRetailError, match="Online Retail.xlsx: not a whole .xlsx file"):
        read(tmp_path)


def test_a_workbook_without_a_cell_is_refused(tmp_path: Path) -> None:
    pd.DataFrame().to_excel(tmp_path / "Online Retail.xlsx", index=False)
    with pytest.raises(OnlineRetailError, match="the column 'Description' once, got 0"):
        read(tmp_path)


def test_without_openpyxl_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "Online Retail.xlsx", table())
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(OnlineRetailError, match="pip install openpyxl"):
        read(tmp_path)


def test_a_folder_without_or_with_two_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OnlineRetailError, match="expected one of Online Retail.xlsx, .*found none"):
        read(tmp_path)
    for name in ("Online Retail.csv", "online_retail.csv"):
        (tmp_path / name).write_text(HEADER + GOOD)
    with pytest.raises(OnlineRetailError, match="found Online Retail.csv and online_retail.csv"):
        read(tmp_path)
