"""Tables as JSON: numpy's numbers, and null for what JSON has no word for."""

import json

import numpy as np
import pandas as pd

from reclora.pipelines.records import records


def test_rows_are_what_json_has() -> None:
    table = pd.DataFrame(
        {
            "segment": ["de", "</script>"],
            "users": np.array([3, 4], dtype=np.int64),
            "low": [0.1 + 0.2, np.nan],
            "high": [np.inf, -1.5],
            "ok": np.array([True, False]),
        }
    )
    found = records(table)
    assert found == [
        {"segment": "de", "users": 3, "low": 0.3, "high": None, "ok": True},
        {"segment": "</script>", "users": 4, "low": None, "high": -1.5, "ok": False},
    ]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert records(table[:0]) == []
