"""The interaction log: its contract, its layout by segment, its identifiers."""

from reclora.interactions.contract import LogContract, LogError
from reclora.interactions.ids import IdMap
from reclora.interactions.layout import prepare_log
from reclora.interactions.log import Interactions
from reclora.interactions.summary import LogSummary

__all__ = ["IdMap", "Interactions", "LogContract", "LogError", "LogSummary", "prepare_log"]
