"""Random numbers by counting: a function of names and positions, the same on any machine."""

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from reclora.counted import mix, segment_seed, under_seed
from tests import reference


def test_mix_is_splitmix64() -> None:
    """The published generator, seed 0: counters are multiples of its odd constant."""
    counters = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(number) for number in mix(counters)] == expected
    assert [reference.mix(int(counter)) for counter in counters] == expected


@given(st.lists(st.integers(0, 2**64 - 1), max_size=5))
def test_mix_equals_whole_numbers(counters: list[int]) -> None:
    found = mix(np.array(counters, dtype=np.uint64))
    assert found.tolist() == [reference.mix(counter) for counter in counters]


def test_every_byte_of_a_mixed_counter_is_uniform() -> None:
    mixed = mix(np.arange(50_000, dtype=np.uint64))
    for place in range(8):
        counts = np.bincount((mixed >> np.uint64(8 * place)).astype(np.uint8), minlength=256)
        assert chisquare(counts).pvalue > 1e-4
    assert len(np.unique(mixed)) == 50_000


def test_seeds_depend_on_seed_and_name_only_and_hold_any_name() -> None:
    names = ["a", "b", "", "日本", "a\0b", "\ud800", "1\0a"]
    seeds = [segment_seed(seed, name) for seed in (0, 1, 11) for name in names]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    digest = hashlib.blake2b("7\0日本".encode(), digest_size=8).digest()
    assert segment_seed(7, "日本") == int.from_bytes(digest, "little") // 2


def test_a_copy_draws_as_its_segment_does_under_its_seed() -> None:
    names = ["a", "", "日本", "a\0seed", "\ud800"]
    copies = {under_seed(name, seed) for name in names for seed in (0, 1, 11)}
    assert len(copies) == 15 and not copies & {*names}
    for name in names:
        for seed in (0, 1, 11):
            found = {segment_seed(run, under_seed(name, seed)) for run in (0, 5)}
            assert found == {segment_seed(seed, name)}
