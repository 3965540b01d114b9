"""Tables as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as JSON has them: by way of pandas, which writes numpy's numbers to the last digits,
    and null for NaN and infinity.
    """
    return list(json.loads(table.to_json(orient="records", double_precision=15)))
