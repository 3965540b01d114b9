"""The interaction log: its contract, its layout by segment, its identifiers."""
