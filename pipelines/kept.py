"""What a run has made, kept in its folder while it is under way: after a kill it is read there, and
not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from reclora.evaluation import HeldOut, KeptLists, Lists, ScorerOf
from reclora.evaluation.lists import Progress
from reclora.files import make_folder, read_parquet, write_parquet
from reclora.workers import run_tasks

from .orders import Crew, recommend
from .run import digest

What = tuple[object, ...]
"""Everything that decides a table, JSON-able."""


@dataclass(frozen=True)
class Kept:
    """Tables and lists in a folder, each by the digest of what it is.

    Args:
        folder: it is made. It belongs to one run, so what the run's id says need not be said again.
        processes: that make tables at once.
    """

    folder: Path
    processes: int = 1
    crew: Crew | None = None
    """The ranks that rank, where there are many."""

    def recommend(
        self,
        held_out: HeldOut,
        scorer_of: ScorerOf,
        *what: object,
        model: str,
        progress: Progress | None = None,
    ) -> dict[str, Lists]:
        """The lists of a model by stage, ranked by all hands, and kept by what decides them.

        Raises:
            ValueError, OSError: as `reclora.evaluation.recommend`.
        """
        return recommend(
            held_out,
            scorer_of,
            model=model,
            workers=self.processes,
            crew=self.crew,
            kept=self.lists(*what),
            progress=progress,
        )

    def lists(self, *what: object) -> KeptLists:
        """Where the lists of one model are kept."""
        return KeptLists(self.folder, f"lists-{digest(*what)}")

    def read(self, *what: object) -> pd.DataFrame | None:
        """A table; None where it was not made yet, or is damaged."""
        try:
            table: pd.DataFrame = read_parquet(self._path(what)).to_pandas()
        except (OSError, pa.ArrowInvalid):
            return None
        return table

    def write(self, table: pd.DataFrame, *what: object) -> None:
        """Keep a table, whole or not at all (OSError)."""
        make_folder(self.folder)
        write_parquet(self._path(what), pa.Table.from_pandas(table, preserve_index=False))

    def tables(self, jobs: Sequence[tuple[What, Callable[[], pd.DataFrame]]]) -> list[pd.DataFrame]:
        """A table of each job: read, or made and kept, several at once.

        Raises:
            OSError: a table cannot be kept.
            Exception: what a job raises.
        """

        def work(numbers: tuple[int, ...]) -> None:
            for number in numbers:
                what, make = jobs[number]
                self.write(make(), *what)

        found = [self.read(*what) for what, _ in jobs]
        missing = [(number,) for number, table in enumerate(found) if table is None]
        if self.processes > 1 and len(missing) > 1:
            run_tasks(missing, work, self.processes)
        for numbers in missing:
            what, _ = jobs[numbers[0]]
            if (table := self.read(*what)) is None:
                # Where it failed in a process, this is for its error.
                work(numbers)
                table = self.read(*what)
            assert table is not None, f"{self._path(what)} was written a moment ago"
            found[numbers[0]] = table
        return [table for table in found if table is not None]

    def _path(self, what: What) -> Path:
        return self.folder / f"table-{digest(*what)}.parquet"
