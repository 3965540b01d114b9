"""This file is the users that a canary is for: a fixed share of them, by a hash of identifiers.

A formula that a serving system can compute in any language. Needs no torch.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

PREFIX = b"canary:"
"""Hashed before each identifier, so that no other experiment divides the users alike by chance."""

_BYTES = 8


def is_in_share(user_ids: pa.Array | pa.ChunkedArray, share: float) -> NDArray[np.bool_]:
    """Which users are among the share that candidates are for.

        big_endian(the first 8 bytes of sha256("canary:" + user_id)) < share * 2^64

    with user_id as UTF-8, integers in decimal: 5 and "5" are one user. The same users at all times
    and on all machines; a larger share has those of a smaller one.

    Args:
        user_ids: U strings or integers, none null.
        share: above 0 and below 1.

    Returns:
        bool, shape (U,).

    Raises:
        TypeError: the identifiers are neither strings nor integers.
        ValueError: one is null.
    """
    types, kind = pa.types, user_ids.type
    if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
        raise TypeError(f"user_ids must be strings or integers, got {kind}")
    if user_ids.null_count:
        raise ValueError(f"user_ids must not be null, got {user_ids.null_count:,} nulls")
    texts = user_ids.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
    # The product with a power of two is exact, so that the bytes are compared as the numbers are.
    limit = math.ceil(share * 2 ** (8 * _BYTES)).to_bytes(_BYTES, "big")
    digests = (hashlib.sha256(PREFIX + text).digest() for text in texts)
    return np.fromiter((digest < limit for digest in digests), np.bool_, len(texts))
