"""Draws depend on (seed, stream, position) and on nothing else."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medloom.data.draws import bits, mix, normal_torch, uniform, uniform_torch

SEEDS = st.integers(-(2**70), 2**70)
POSITIONS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20)


def test_mix_is_splitmix64():
    """Outputs for seed 1234567, as published with the reference implementation (Rosetta Code, Vigna)."""
    start = (1234567 + np.arange(1, 6, dtype=object) * 0x9E3779B97F4A7C15) % 2**64
    got = mix(start.astype(np.uint64))
    assert got.tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@settings(deadline=None)
@given(seed=SEEDS, stream=st.text(max_size=8), positions=POSITIONS, n=st.integers(1, 9))
def test_numpy_and_torch_give_the_same_bits(seed, stream, positions, n):
    ours = uniform(seed, stream, positions, n)
    theirs = uniform_torch(seed, stream, positions, n).numpy()
    assert ours.dtype == theirs.dtype == np.float64
    assert np.array_equal(ours, theirs)
    assert ours.min() >= 0 and ours.max() < 1


@given(seed=SEEDS, positions=POSITIONS, n=st.integers(1, 9), more=st.integers(0, 9))
def test_a_draw_does_not_depend_on_its_company(seed, positions, n, more):
    batch = bits(seed, "crop", positions, n + more)
    alone = np.concatenate([bits(seed, "crop", [p], n) for p in positions])
    assert np.array_equal(batch[:, :n], alone)


def test_seed_stream_position_and_column_all_matter():
    words = np.concatenate(
        [bits(s, name, np.arange(200), 20).ravel() for s in (0, 1, -1) for name in ("crop", "flip")]
    )
    assert len(np.unique(words)) == words.size


def test_uniform_is_uniform_and_uncorrelated():
    """Bounds of five standard errors; neighbouring positions and columns must not move together."""
    u = uniform(3, "test", np.arange(4000), 50)
    assert abs(u.mean() - 0.5) < 5 * np.sqrt(1 / 12 / u.size)
    counts = np.histogram(u, bins=64, range=(0, 1))[0]
    chi = ((counts - u.size / 64) ** 2 / (u.size / 64)).sum()
    assert abs(chi - 63) < 5 * np.sqrt(2 * 63)
    for a, b in ((u[1:], u[:-1]), (u[:, 1:], u[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_normal_has_unit_moments_and_odd_counts():
    z = normal_torch(0, "noise", torch.arange(500), 301).double()
    assert z.shape == (500, 301)
    assert torch.isfinite(z).all()
    error = 1 / np.sqrt(z.numel())
    assert abs(z.mean()) < 5 * error and abs(z.std() - 1) < 5 * error
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96) * error


def test_normal_depends_on_seed_stream_and_position_alone():
    z = normal_torch(1, "noise", torch.tensor([3, -7, 2**40]), 30)
    assert torch.equal(z[1:2], normal_torch(1, "noise", torch.tensor([-7]), 30))
    for other in (normal_torch(2, "noise", [3], 30), normal_torch(1, "rain", [3], 30)):
        assert not torch.equal(z[:1], other)


def test_normal_is_normal_and_neighbours_are_strangers():
    """Kolmogorov and Smirnov, and correlations within five standard errors: columns, positions, streams."""
    from scipy.stats import kstest

    z = normal_torch(5, "noise", torch.arange(4), 50_001).double().numpy()
    assert kstest(z.ravel(), "norm").pvalue > 1e-4
    pairs = [(z[:, lag:], z[:, :-lag]) for lag in (1, 2, 3, 64, 25_000)]
    pairs += [(z[1:], z[:-1]), (z, normal_torch(5, "other", torch.arange(4), 50_001).double().numpy())]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_the_second_half_of_a_key_makes_another_sequence():
    """One pair of samples in 2^32 shares the first half of its keys: their noise must not be alike."""
    from medloom.data.draws import _triple32

    columns = torch.arange(200_000, dtype=torch.int32)[None]
    one, two = (_triple32(columns.clone(), torch.tensor([[key]], dtype=torch.int32)) for key in (5, 6))
    a, b = one.double().numpy().ravel(), two.double().numpy().ravel()
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(a.size)
