"""The deltas of all segments over one frozen base, stacked."""

from reclora.bank.bank import AdapterBank

__all__ = ["AdapterBank"]
