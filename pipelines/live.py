"""What is live: the scorers of a release, and the adapters that training begins with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from reclora.adapters import Adapter
from reclora.base import BaseModel
from reclora.configs import AdapterConfig
from reclora.ranking import Scorer
from reclora.store import AdapterStore, Release

from .contenders import Contender
from .run import RunSettings
from .served import Served
from .settings import SettingsError

KNOWN_UNTIL = "chosen on rows until"
"""In a release's metrics: the last moment that training and choosing knew, seconds since 1970."""


@dataclass(frozen=True)
class Live:
    """The release that is live as a run begins, if there is one."""

    release: Release | None
    base: BaseModel
    """Grown by the identifiers that its adapters bring."""
    scorer_of: Callable[[str], Scorer]
    """Segment -> what serves it now; the base where nothing does."""
    parent: Adapter | None
    """What segments are to stand on, where it is there already."""
    start: Mapping[str, Adapter]
    """Segment -> the adapter that its training begins with."""

    @classmethod
    def of(
        cls,
        store: AdapterStore,
        release: Release | None,
        base: BaseModel,
        settings: RunSettings,
        only: Sequence[str],
    ) -> Live:
        """Read a release, and what training takes over from it.

        Raises:
            SettingsError: some segments alone are to be trained, and there is no parent for them.
            BaseMismatch, StoreError: see `AdapterStore.load_stacks`.
        """
        goes_on = settings.start == "current" or bool(only)
        if release is None:
            if only and settings.parent != "none":
                raise SettingsError(
                    "--only trains some segments on the parent that is live, and nothing is: run "
                    "once without --only, or set parent = 'none'"
                )
            frozen = base.scorer()
            return cls(None, base, lambda segment: frozen, None, {})
        served = Served(base, store, release)
        parent = served.main_parent if goes_on and settings.parent != "none" else None
        if only and parent is None and settings.parent != "none":
            raise SettingsError(
                f"--only trains some segments on the parent that is live, and release "
                f"{release.number} has none: run without --only, or set parent = 'none'"
            )
        start = served.standing_on(parent) if settings.start == "current" else {}
        return cls(release, served.base, served.scorer, parent, start)

    def with_its_kinds(self, contender: Contender, segments: Sequence[str]) -> Contender:
        """The contender with the kinds that segments begin with, where they do begin with some."""
        if not self.start:
            return contender
        usual = contender.config
        assert isinstance(usual, AdapterConfig)
        configs = [self.start[s].config if s in self.start else usual for s in segments]
        return replace(contender, config=tuple(c for c in configs if isinstance(c, AdapterConfig)))
