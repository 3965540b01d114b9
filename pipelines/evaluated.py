"""A finished evaluation: compared, written, and with its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from reclora.report import Report, write_report

from .assessment import Assessment, Tables
from .reporting import pairs_of
from .run import RunFolder, RunSettings, versions
from .sections import definitions, sections_of
from .settings import resolved


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation."""

    folder: RunFolder
    subject: str
    """The model in question."""
    baseline: str
    """What it is held against; empty where there is nothing."""
    tables: Tables
    quality: Mapping[str, int]

    @property
    def headline(self) -> pd.DataFrame:
        """The comparisons of the subject with the baseline on the headline metric."""
        table = self.tables.comparison
        if table.empty:
            return table
        wanted = {"model": self.subject, "baseline": self.baseline}
        wanted |= {"metric": table["metric"].iloc[0], "k": table["k"].iloc[0]}
        chosen = (table[list(wanted)] == pd.Series(wanted)).all(axis=1)
        return table.loc[chosen]

    @property
    def verdict(self) -> str:
        """Better, worse or cannot tell, over all segments; cannot tell without a baseline."""
        headline = self.headline
        return "cannot tell" if headline.empty else str(headline.iloc[0]["verdict"])


def finished(
    folder: RunFolder,
    settings: RunSettings,
    assessment: Assessment,
    *,
    subject: str,
    baseline: str,
    quality: Mapping[str, int],
    split: pd.DataFrame,
    title: str,
    notes: Sequence[str],
    settings_shown: Mapping[str, object] | None = None,
    further: Sequence[tuple[str, str]] = (),
) -> Evaluated:
    """Compare, write the tables and the page, and say that the folder is complete.

    Args:
        further: (model, baseline) to compare beside what `pairs_of` says.
    """
    pairs = pairs_of(assessment.models, subject, baseline) if baseline else []
    pairs += further
    tables = assessment.tables(pairs, sliced=pairs)
    assessment.write_results(folder.results)
    tables.write(folder.path)
    if baseline:
        config, counts = settings.evaluation, assessment.yardstick.held_out.counts()
        write_report(
            folder.report,
            Report(
                title=title,
                run=folder.id,
                subject=subject,
                baseline=baseline,
                metric=config.metrics[0],
                k=config.ks[0],
                means=tables.means,
                lifts=tables.comparison,
                segments=counts[counts["users"] + counts["users_without_relevant"] > 0],
                curves=pd.DataFrame(),
                split=split,
                data_quality=quality,
                definitions=definitions(tables),
                settings=settings_shown or resolved(settings),
                versions=versions(),
                repeat=settings.repeat,
                notes=notes,
                sections=sections_of(tables, config.ks[0], subject, baseline),
            ),
        )
    folder.complete({"data_quality": dict(quality), "subject": subject, "baseline": baseline})
    return Evaluated(folder, subject, baseline, tables, quality)
