"""This file is the record of a log that was laid out: what was read, dropped and kept."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from reclora.interactions.contract import LogContract, LogError

SUMMARY = "summary.json"
FORMAT = 1
NEEDS = "0.1.0"
"""The first version of reclora that reads `FORMAT`."""


@dataclass(frozen=True)
class LogSummary:
    """What `prepare_log` read, dropped and kept."""

    contract: LogContract
    rows_read: int
    rows_kept: int
    quarantined: dict[str, int]
    """Rows that break the contract, by reason; quarantine.parquet lists them."""
    duplicates: int
    """Rows merged into an earlier one."""
    below_min_label: int
    """Rows that are not in the log because their label is below the contract's `min_label`."""
    users: int
    items: int
    segments: dict[str, int]
    """Rows kept of each segment, in the log's order: ascending by UTF-8 bytes; 0 of one that has
    only rows below `min_label`."""
    first: str
    """Time of the earliest row kept, ISO 8601 in UTC; "" where none was kept."""
    last: str
    inputs: dict[str, str]
    """sha256 of each file read, by its path as given."""
    declined: int = 0
    """Rows of those below `min_label` that were kept beside the log, duplicates merged."""

    def to_json(self) -> str:
        """Return the summary as JSON text, with its format version."""
        fields = asdict(self)
        if self.contract.declined == "drop":
            # As versions write and read it that know nothing else.
            del fields["declined"], fields["contract"]["declined"]
        return json.dumps({"format": FORMAT, "needs": NEEDS, **fields}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "LogSummary":
        """Return the summary that `to_json` wrote.

        Raises:
            LogError: the text is no summary, or of a newer format.
        """
        try:
            fields = json.loads(text)
            version, needs = fields.pop("format"), fields.pop("needs", "that of its writer")
            if version != FORMAT:
                raise LogError(
                    f"expected a log summary of format {FORMAT}, got {version}, which needs "
                    f"reclora >= {needs}; lay the log out again, or install that"
                )
            contract = fields["contract"]
            contract["attributes"] = tuple(contract.get("attributes", ()))
            return cls(**{**fields, "contract": LogContract(**contract)})
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise LogError(f"not a log summary: {error}") from error

    @classmethod
    def read(cls, folder: Path) -> "LogSummary":
        """Return the summary in a folder that `prepare_log` completed.

        Raises:
            LogError: there is none, or it is damaged.
        """
        path = folder / SUMMARY
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise LogError(
                f"{folder}: no complete log, {SUMMARY} is missing; prepare_log makes one"
            ) from error
        except (LogError, UnicodeDecodeError) as error:
            raise LogError(f"{path}: {error}") from error
