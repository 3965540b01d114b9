"""The k best of many scores, tile by tile, in compiled loops.

A tile holds the scores of B users for C consecutive items, and tiles come in the order of items.
Each user keeps the best keys so far; a key is one integer that sorts as a list does:

    key = (not ordered(score)) * 2^32 + item row        the least key is the best

so that equal scores come by item row. What makes it fast is what is not looked at. The maxima of
groups of items are made for all of a tile, in vector instructions; only a group whose maximum beats
the user's k-th best score so far is looked into. Where a user has no k scores yet, the k-th largest
maximum of the tile bounds the k-th best score from below: k groups reach it, so k items do.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from reclora.compiled import compiled

Keys = NDArray[np.int64]
Number = TypeVar("Number", np.int64, np.float32)

_GROUP = 16
"""Items of a group: fewer maxima to look through against more scores behind each of them."""
_HALVINGS = 10
_TINY = np.finfo(np.float32).tiny
_LOW = np.int64(0xFFFFFFFF)
_BELOW_SIGN = np.int32(0x7FFFFFFF)
_LOWEST = np.float32(-np.inf)


@compiled
def keep_best(
    scores_BC: NDArray[np.float32],
    first_item: int,
    k: int,
    seen_offsets_B1: NDArray[np.int64],
    seen_items: NDArray[np.int64],
    keys_BX: Keys,
    counts_B: NDArray[np.int64],
    floors_B: NDArray[np.float32],
) -> int:
    """Add a tile to the best keys of each user.

    Args:
        scores_BC: C-contiguous; column c is the item first_item + c; -inf is no candidate.
        seen_offsets_B1, seen_items: the items that user b may not get, ascending, are
            `seen_items[seen_offsets_B1[b] : seen_offsets_B1[b + 1]]`.
        keys_BX: room for X >= 2 k + C keys a user; in use are the first counts_B[b], in any order.
        floors_B: only a score above it can still enter the list; -inf while there are fewer than k.

    Returns:
        The first user with a score that is NaN or +inf, before whom all is done; else -1.
    """
    num_items = scores_BC.shape[1]
    bits_BC = scores_BC.view(np.int32)
    maxima = np.empty(num_items, np.float32)
    columns = np.empty(2 * num_items, np.int64)
    for b in range(len(scores_BC)):
        scores, bits, keys = scores_BC[b], bits_BC[b], keys_BX[b]
        count, floor = counts_B[b], floors_B[b]
        is_full = count >= k
        group = _GROUP if is_full else max(1, min(_GROUP, num_items // (4 * k)))
        num_groups = (num_items + group - 1) // group
        if _group_maxima(scores, num_groups, maxima):
            return b
        seen = _part(seen_items[seen_offsets_B1[b] : seen_offsets_B1[b + 1]], first_item, num_items)
        if not is_full and num_groups >= k:
            _leave_out(seen, first_item, scores, num_groups, maxima)
            floor = _just_below(_bound(maxima[:num_groups], k))
        for c in columns[: _columns_above(floor, scores, num_groups, maxima, columns)]:
            if not _holds(seen, first_item + c):
                keys[count] = _key(scores[c], bits[c], first_item + c)
                count += 1
        if count > 2 * k:
            count = _drop_worst(keys[:count], k)
            floor = max(floor, _score_of(keys[:count].max()))
        counts_B[b] = count
        floors_B[b] = floor if count >= k else _LOWEST
    return -1


@compiled
def write_lists(
    keys_BX: Keys,
    counts_B: NDArray[np.int64],
    k: int,
    item_rows_BK: NDArray[np.int64],
    scores_BK: NDArray[np.float32],
) -> None:
    """The k best keys of each user, in order, as item rows and scores; places beyond them stay."""
    bits_BK = scores_BK.view(np.int32)
    for b in range(len(counts_B)):
        keys = keys_BX[b]
        count = min(counts_B[b], k)
        if counts_B[b] > k:
            _select(keys[: counts_B[b]], k - 1)
        best = np.sort(keys[:count])
        for place in range(count):
            item_rows_BK[b, place] = best[place] & _LOW
            bits_BK[b, place] = _bits_of(best[place])


@compiled
def _group_maxima(
    scores: NDArray[np.float32], num_groups: int, maxima: NDArray[np.float32]
) -> bool:
    """Group j holds the items j, j + num_groups, ... Returns whether a score is NaN or +inf."""
    num_nan = 0
    for c in range(len(scores)):
        num_nan += scores[c] != scores[c]
    maxima[:num_groups] = scores[:num_groups]
    # Slices and `max`, as compilers like it: eight times as fast as a branch.
    start = num_groups
    while start + 3 * num_groups <= len(scores):
        one = scores[start : start + num_groups]
        two = scores[start + num_groups : start + 2 * num_groups]
        three = scores[start + 2 * num_groups : start + 3 * num_groups]
        for j in range(num_groups):
            maxima[j] = max(max(maxima[j], one[j]), max(two[j], three[j]))
        start += 3 * num_groups
    while start < len(scores):
        one = scores[start : start + num_groups]
        for j in range(len(one)):
            maxima[j] = max(maxima[j], one[j])
        start += num_groups
    highest = _LOWEST
    for j in range(num_groups):
        highest = max(highest, maxima[j])
    return num_nan > 0 or highest == np.inf


@compiled
def _columns_above(
    floor: np.float32,
    scores: NDArray[np.float32],
    num_groups: int,
    maxima: NDArray[np.float32],
    columns: NDArray[np.int64],
) -> int:
    """Write the columns of scores above the floor, in any order; returns how many there are.

    Nothing is branched on but the loops' ends: what is above the floor is what no processor can
    foresee.
    """
    groups = columns[len(scores) :]
    num_chosen = 0
    for j in range(num_groups):
        groups[num_chosen] = j
        num_chosen += maxima[j] > floor
    num_columns = 0
    for j in groups[:num_chosen]:
        for c in range(j, len(scores), num_groups):
            columns[num_columns] = c
            num_columns += scores[c] > floor
    return num_columns


@compiled
def _bound(values: NDArray[np.float32], k: int) -> np.float32:
    """A number that at least k of the values reach, close below the k-th largest; -inf where only
    so many are above -inf.

    By bisection: counting is a vector instruction, and a quickselect is a branch nobody foresees
    for every value: ten times as slow.
    """
    high: np.float32 = values.max()
    low = high
    for j in range(len(values)):
        low = min(low, values[j] if values[j] > _LOWEST else low)
    if _count_from(values, low) < k:
        return _LOWEST
    for _ in range(_HALVINGS):
        middle = low + (high - low) / np.float32(2)
        if _count_from(values, middle) >= k:
            low = middle
        else:
            high = middle
    return low


@compiled
def _just_below(bound: np.float32) -> np.float32:
    """A floor that the bound itself is above.

    Around zero it is the first number that is not denormal: processors may be told to take those
    for zero.
    """
    if -_TINY < bound <= _TINY:
        return np.float32(-_TINY)
    below: np.float32 = np.nextafter(bound, _LOWEST)
    return below


@compiled
def _count_from(values: NDArray[np.float32], least: np.float32) -> int:
    count = 0
    for j in range(len(values)):
        count += values[j] >= least
    return count


@compiled
def _drop_worst(keys: Keys, k: int) -> int:
    """Move at least the k least keys to the front; returns how many were moved, at most 3 k / 2."""
    low, high = keys.min(), keys.max()
    for _ in range(_HALVINGS):
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, which cannot overflow
        if _count_to(keys, middle) >= k:
            high = middle
        else:
            low = middle
    if 2 * _count_to(keys, high) > 3 * k:
        # Scores far apart, or nearly all the same.
        _select(keys, k - 1)
        return k
    count = 0
    for x in range(len(keys)):
        key = keys[x]
        keys[count] = key
        count += key <= high
    return count


@compiled
def _count_to(keys: Keys, greatest: np.int64) -> int:
    count = 0
    for x in range(len(keys)):
        count += keys[x] <= greatest
    return count


@compiled
def _leave_out(
    seen: NDArray[np.int64],
    first_item: int,
    scores: NDArray[np.float32],
    num_groups: int,
    maxima: NDArray[np.float32],
) -> None:
    """Make the maxima of groups that a seen item leads anew, without the seen items."""
    for item in seen:
        c = item - first_item
        j = c % num_groups
        if scores[c] < maxima[j]:
            continue
        best = _LOWEST
        for other in range(j, len(scores), num_groups):
            if scores[other] > best and not _holds(seen, first_item + other):
                best = scores[other]
        maxima[j] = best


@compiled
def _part(ascending: NDArray[np.int64], first: int, length: int) -> NDArray[np.int64]:
    """The numbers from `first` to first + length - 1."""
    return ascending[_first_from(ascending, first) : _first_from(ascending, first + length)]


@compiled
def _holds(ascending: NDArray[np.int64], item: int) -> bool:
    place = _first_from(ascending, item)
    return place < len(ascending) and ascending[place] == item


@compiled
def _first_from(ascending: NDArray[np.int64], item: int) -> int:
    """The position of the first number that is at least `item`."""
    low, high = 0, len(ascending)
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] < item:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _key(score: np.float32, bits: np.int32, item: int) -> np.int64:
    if score == 0:
        bits = np.int32(0)  # -0.0 equals 0.0
    ordered = bits ^ _BELOW_SIGN if bits < 0 else bits
    return (np.int64(~ordered) << 32) | np.int64(item)


@compiled
def _bits_of(key: np.int64) -> np.int32:
    ordered = ~np.int32(key >> 32)
    return ordered ^ _BELOW_SIGN if ordered < 0 else ordered


@compiled
def _score_of(key: np.int64) -> np.float32:
    one = np.empty(1, np.int32)
    one[0] = _bits_of(key)
    score: np.float32 = one.view(np.float32)[0]
    return score


@compiled
def _select(values: NDArray[Number], place: int) -> None:
    """Reorder so that `values[place]` is what a sort would put there, and nothing before it is
    greater (Hoare, "Algorithm 65: Find", CACM 4(7), 1961).
    """
    left, right = 0, len(values) - 1
    while left < right:
        first, middle, last = values[left], values[(left + right) // 2], values[right]
        pivot = max(min(first, middle), min(max(first, middle), last))
        i, j = left, right
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if place <= j:
            right = j
        elif place >= i:
            left = i
        else:
            break
