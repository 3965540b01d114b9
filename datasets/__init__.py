"""Where logs come from: one module a data set, and the planted world whose truth is known.

Installed as `reclora.datasets`.
"""
