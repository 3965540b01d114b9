"""Objects in a notebook: the line that `repr` says, and a table below it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

ROWS = 20
"""So many rows of a table are shown."""


def as_html(what: object, columns: Mapping[Any, Any]) -> str:
    """`repr(what)`, and the first rows of a table of these columns, as HTML; a name is text in it,
    whatever it spells.
    """
    # Who never opens a notebook does not wait for it.
    import pandas as pd

    table = pd.DataFrame(dict(columns))
    shown = table.head(ROWS).to_html(index=False, border=0, na_rep="–")
    more = f"<p>{ROWS} of {len(table):,} rows</p>" if len(table) > ROWS else ""
    return f"<p>{html.escape(repr(what))}</p>{shown}{more}"
