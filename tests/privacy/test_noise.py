import math
import os

import numpy as np
import pytest
from kit.false_alarms import RARE, SIGMAS
from scipy import stats

from vht_federate.errors import InputError
from vht_federate.privacy.noise import NoiseSource, SecureNoise, _logarithm
from vht_federate.testing import SeededNoise

FAR_APART = math.sqrt(math.log(2 / RARE) / 2)  # Kolmogorov's statistic that chance passes so rarely (Massart 1990)


def ks_distance(sample: np.ndarray) -> float:
    ordered = np.sort(sample)
    cdf = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in ordered])
    steps = np.arange(1, len(ordered) + 1) / len(ordered)
    return float(max(np.max(steps - cdf), np.max(cdf - steps + 1 / len(ordered))))


@pytest.mark.parametrize("source", [SecureNoise(), SeededNoise(1)])
def test_normals_are_standard_normal(source: NoiseSource) -> None:
    sample = source.gaussian((40_001,))
    assert sample.shape == (40_001,)
    assert sample.dtype == np.float64
    assert ks_distance(sample) < FAR_APART / math.sqrt(len(sample))
    half = len(sample) // 2  # sines beside cosines of the same angles: uncorrelated
    assert abs(np.corrcoef(sample[:half], sample[half : 2 * half])[0, 1]) < SIGMAS / math.sqrt(half)


def test_normals_in_float32_are_standard_normal() -> None:
    sample = SecureNoise().gaussian_float32((40_001,))
    assert sample.shape == (40_001,)
    assert sample.dtype == np.float32
    assert ks_distance(sample.astype(np.float64)) < FAR_APART / math.sqrt(len(sample))
    half = len(sample) // 2
    assert abs(np.corrcoef(sample[:half], sample[half : 2 * half])[0, 1]) < SIGMAS / math.sqrt(half)
    assert abs(np.corrcoef(np.abs(sample[:half]), np.abs(sample[half : 2 * half]))[0, 1]) < SIGMAS / math.sqrt(half)


def test_more_normals_than_fit_one_block_of_the_key_stream_are_all_different() -> None:
    sample = SecureNoise().gaussian((300_000,))
    assert len(np.unique(sample)) > 299_990


def test_shapes_are_kept_scalars_and_empty_ones_too() -> None:
    noise = SecureNoise()
    assert noise.gaussian((3, 5)).shape == (3, 5)
    assert noise.gaussian(()).shape == ()
    assert noise.gaussian((0, 4)).shape == (0, 4)


def test_the_smallest_and_largest_integers_of_the_stream_give_finite_normals(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = SecureNoise()
    for extreme in (0, (1 << 53) - 1):
        monkeypatch.setattr(noise, "_integers", lambda count, e=extreme: np.full(count, e, dtype=np.uint64))
        assert np.isfinite(noise.gaussian((4,))).all()
        assert np.abs(noise.gaussian((4,))).max() < 8.6


@pytest.mark.parametrize("byte", [b"\0", b"\x7f", b"\x80", b"\xff"])
def test_the_smallest_and_largest_bytes_of_the_stream_give_finite_normals(
    monkeypatch: pytest.MonkeyPatch, byte: bytes
) -> None:
    noise = SecureNoise()
    monkeypatch.setattr(noise, "_bytes", lambda size: byte * size)
    for normals in (noise.gaussian((4,)), noise.gaussian_float32((4,))):
        assert np.isfinite(normals).all()
        assert np.abs(normals).max() < 11.0


def test_the_farthest_radii_in_float32_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = SecureNoise()
    stream, calls = noise._bytes, iter([bytes(8000)])
    monkeypatch.setattr(noise, "_bytes", lambda size: next(calls, None) or stream(size) if size else b"")
    normals = noise.gaussian_float32((2000,))  # every radius from 32 zero bits, at angle zero
    assert (normals[:1000] > math.sqrt(2 * 32 * math.log(2)) - 1e-5).all()
    assert len(np.unique(normals[:1000])) > 950


def test_two_sources_never_draw_the_same_stream() -> None:
    assert not np.array_equal(SecureNoise().uniform(8), SecureNoise().uniform(8))


def test_one_source_never_repeats_itself() -> None:
    noise = SecureNoise()
    assert len(np.unique(np.concatenate([noise.uniform(1000), noise.uniform(1000)]))) == 2000


def test_a_forked_child_draws_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = SecureNoise()
    stream = noise._stream
    monkeypatch.setattr(os, "getpid", lambda: -1)
    noise.uniform(1)
    assert noise._stream is not stream


def test_uniforms_stay_below_one_and_poisson_samples_have_the_right_rate() -> None:
    noise = SecureNoise()
    uniforms = noise.uniform(50_000)
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    draws, spread = 1000, math.sqrt(400 * 0.25 * 0.75)
    sizes = [len(noise.poisson_sample(400, 0.25)) for _ in range(draws)]
    assert abs(np.mean(sizes) - 100) < SIGMAS * spread / math.sqrt(draws)
    assert abs(np.std(sizes) / spread - 1) < SIGMAS / math.sqrt(2 * draws)  # independent draws, not a fixed size


def test_a_sample_is_ascending_without_repeats_and_rate_one_takes_everybody() -> None:
    noise = SecureNoise()
    sample = noise.poisson_sample(1000, 0.5)
    assert (np.diff(sample) > 0).all()
    assert np.array_equal(noise.poisson_sample(7, 1.0), np.arange(7))
    assert len(noise.poisson_sample(0, 0.5)) == 0


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(InputError):
        SecureNoise().poisson_sample(10, rate)


def test_every_subset_of_patients_is_drawn_with_its_exact_probability() -> None:
    noise, patients, rate, draws = SecureNoise(), 4, 0.3, 20_000
    everybody = noise.poisson_sample(patients * draws, rate)  # each patient on its own: as many samples side by side
    sampled = np.zeros(patients * draws, dtype=np.int64)
    sampled[everybody] = 1
    subsets = np.bincount(sampled.reshape(draws, patients) @ (1 << np.arange(patients)), minlength=1 << patients)
    sizes = np.array([number.bit_count() for number in range(1 << patients)])
    exact = rate**sizes * (1 - rate) ** (patients - sizes)
    assert stats.chisquare(subsets, exact * draws).pvalue > RARE


def test_the_size_of_a_sample_is_binomial() -> None:
    noise = SecureNoise()
    sizes = np.bincount([len(noise.poisson_sample(12, 0.4)) for _ in range(6000)], minlength=13)
    exact = stats.binom.pmf(np.arange(13), 12, 0.4) * 6000
    cells = [slice(0, 2), *(slice(k, k + 1) for k in range(2, 9)), slice(9, 13)]  # enough expected in each
    assert stats.chisquare([sizes[c].sum() for c in cells], [exact[c].sum() for c in cells]).pvalue > RARE


@pytest.mark.parametrize("draw", ["gaussian", "gaussian_float32"])
def test_normals_have_their_exact_probabilities_into_the_tails(draw: str) -> None:
    count = 1_000_000
    sample = getattr(SecureNoise(), draw)((count,)).astype(np.float64)
    cells = np.bincount((stats.norm.cdf(sample) * 200).astype(int).clip(0, 199), minlength=200)
    assert stats.chisquare(cells).pvalue > RARE
    for far in (3.0, 4.0, 4.5):
        beyond, chance = int((np.abs(sample) > far).sum()), 2 * stats.norm.sf(far)
        assert min(stats.binom.cdf(beyond, count, chance), stats.binom.sf(beyond - 1, count, chance)) > RARE
    pairs = sample[: count // 2] * sample[count // 2 :]
    assert abs(pairs.mean()) < SIGMAS / math.sqrt(count / 2)


def test_the_logarithm_in_float32_keeps_its_digits_next_to_one_and_next_to_zero() -> None:
    near_one, near_zero = 1.0 - 2.0 ** -np.arange(1.0, 34.0), 2.0 ** -np.arange(0.5, 85.0, 0.5)
    draws = (np.random.default_rng(5).integers(2**32, size=100_000) + 0.5) / 2**32
    uniform = np.concatenate([near_one, near_zero, draws])
    logarithm = _logarithm(uniform.copy(), np.dtype(np.float32))
    assert logarithm.dtype == np.float32
    assert np.all(logarithm < 0), "a radius would be no number"
    assert np.abs(logarithm / np.log(uniform) - 1.0).max() < 1e-6
