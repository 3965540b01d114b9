"""What is held out of a window must hold something new for somebody."""

from pathlib import Path

import pytest

from reclora.evaluation import EvaluationConfig
from reclora.interactions import Interactions
from reclora.pipelines.held_out import hold_out_some
from reclora.pipelines.prepare import prepare
from reclora.splits import split
from tests.small_runs import planted_log, small_settings


def test_a_window_with_nothing_new_is_named(tmp_path: Path) -> None:
    log = planted_log(tmp_path / "log.parquet")
    settings = small_settings(tmp_path, log)
    prepare(settings)
    window = split(Interactions.read(settings.log_folder), settings.split).pretrain
    with pytest.raises(ValueError, match="nobody has an item in the last hour that is new to them"):
        hold_out_some("the last hour", window, window, EvaluationConfig())
