"""The bound of a chain on a Gaussian, where every term has a closed form; the discretised Gaussian."""

import math
from itertools import pairwise

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from edmnotes import samplers, steps
from edmnotes.exact import Gaussian, GaussianMixture
from edmnotes.noise import PerSample
from edmnotes.variational import (
    Density,
    GreyLevels,
    Terms,
    bridge,
    consistency_vlb,
    gaussian_kl,
    prior_kl,
    step_kl,
    vlb,
)

STD = 0.5
DATA = Gaussian(0.3, STD)
POINTS = torch.tensor([-0.4, 0.3, 1.1], dtype=torch.float64)
FORMS = [vlb, consistency_vlb]


class Signs:
    """In place of noise: signs, so that means over a batch of four copies of a point are exact for what is quadratic.

    Two draws in a row are balanced together: ++, +−, −+, −−.
    """

    def __init__(self):
        self.drawn = 0

    def __call__(self, x):
        self.drawn += 1
        pattern = [1, 1, -1, -1] if self.drawn % 2 else [1, -1, 1, -1]
        return torch.tensor(pattern).to(x).repeat(len(x) // 4).reshape(-1, *[1] * (x.ndim - 1)).expand_as(x)


def seeded(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def fourfold(points):
    """Four copies of each point, one coordinate."""
    return points.repeat_interleave(4)[:, None]


def averaged(terms):
    """Means over the four copies."""
    prior, chain, end = (v.unflatten(-1, (-1, 4)).mean(-1) for v in (terms.prior, terms.steps, terms.reconstruction))
    return Terms(prior, chain, end, terms.dim)


def ladder(n, high=3.0, low=0.1):
    return steps.ve(n, low, high) if n > 1 else torch.tensor([high, 0.0], dtype=torch.float64)


def posterior_variance(sigma, std=STD):
    """Of x_0 given x."""
    return std**2 * sigma**2 / (std**2 + sigma**2)


def exact_variance(step, y, denoised):
    """Of the true reverse step on DATA, in chain coordinates: that of the bridge plus that of not knowing x_0."""
    keep, std = bridge(step.sigma, step.sigma_next)
    return (std**2 + (1 - keep) ** 2 * posterior_variance(step.sigma)) / (1 + step.sigma_next**2)


# The chain's terms.


@pytest.mark.parametrize("n", [1, 2, 7])
def test_every_term_of_the_bound_has_its_closed_form(n):
    sigmas = ladder(n)
    found = averaged(vlb(DATA, fourfold(POINTS), sigmas, decoder=Density(), std=0.2, noise=Signs()))
    levels = sigmas[:-1]
    share = STD**2 / (STD**2 + levels**2)
    error = ((1 - share[:, None]) * (POINTS - 0.3)) ** 2 + (share * levels)[:, None] ** 2
    gain = (levels[1:] ** -2 - levels[:-1] ** -2) / 2
    torch.testing.assert_close(found.steps, gain[:, None] * error[:-1], rtol=1e-10, atol=0)
    end = error[-1] / (2 * 0.2**2) + math.log(0.2) + math.log(2 * math.pi) / 2
    torch.testing.assert_close(found.reconstruction, end, rtol=1e-10, atol=0)
    prior = kl_divergence(Normal(POINTS, levels[0]), Normal(0.0, torch.sqrt(1 + levels[0] ** 2)))
    torch.testing.assert_close(found.prior, prior, rtol=1e-10, atol=0)


def test_terms_sum_to_the_bound():
    found = vlb(DATA, fourfold(POINTS), ladder(5), decoder=Density(), noise=Signs())
    torch.testing.assert_close(found.total, found.prior + found.steps.sum(0) + found.reconstruction)
    torch.testing.assert_close(found.diffusion, found.steps.sum(0))
    picture = vlb(Gaussian(0.0, 0.5), torch.zeros(2, 1, 4, 4), ladder(3), noise=PerSample([0, 1]))
    torch.testing.assert_close(picture.bits.total, picture.total / 16 / math.log(2))
    assert picture.bits.dim == picture.dim == 16


def test_the_bound_falls_to_the_log_density_as_steps_grow():
    """Highest level, lowest level, prior and decoder exact: what is left is the steps' variance, a gap like 1/T."""
    gaps = []
    for n in (16, 64, 256, 1024):
        found = vlb(
            DATA,
            fourfold(POINTS),
            ladder(n),
            prior=DATA,
            decoder=Density(),
            std=math.sqrt(posterior_variance(0.1)),
            noise=Signs(),
        )
        gaps.append(averaged(found).total + Normal(0.3, STD).log_prob(POINTS))
    assert all(bool((gap > 0).all()) for gap in gaps)
    for coarse, fine in pairwise(gaps):
        torch.testing.assert_close(coarse / fine, torch.full((3,), 4.0).double(), rtol=0.25, atol=0)
    assert float(gaps[-1].max()) < 0.02


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize(("data", "variance"), [(DATA, exact_variance), (Gaussian(0.0, 1.0), samplers.Beta())])
def test_with_the_true_reverse_variance_the_bound_is_the_log_density(form, n, data, variance):
    """β is the true one for data of variance 1, in as few steps as one likes."""
    found = form(
        data,
        fourfold(POINTS),
        ladder(n),
        prior=data,
        variance=variance,
        decoder=Density(),
        std=math.sqrt(posterior_variance(3.0 if n == 1 else 0.1, float(data.std))),
        noise=Signs(),
    )
    truth = -Normal(data.mean, data.std).log_prob(POINTS)
    torch.testing.assert_close(averaged(found).total, truth, rtol=1e-9, atol=1e-10)


class Wrong:
    """A denoiser that is not that of any data."""

    def __call__(self, x, sigma, **cond):
        return 0.6 * x / (1 + sigma) + 0.1


VARIANCES = [samplers.Posterior(), samplers.Beta(), samplers.Interpolated(0.3)]


@pytest.mark.parametrize("variance", VARIANCES, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_the_two_forms_have_one_value(variance, n):
    options = {"variance": variance, "decoder": Density(), "std": 0.2}
    first, second = (averaged(f(Wrong(), fourfold(POINTS), ladder(n), noise=Signs(), **options)) for f in FORMS)
    torch.testing.assert_close(first.total, second.total, rtol=1e-9, atol=0)
    torch.testing.assert_close(first.reconstruction, second.reconstruction)
    if n > 1:
        assert bool((second.prior > first.prior).all())


def test_the_kl_that_forgets_the_upper_neighbour_is_another_number():
    """Luo 2022, eq. 45: KL(q(x_t | x_{t−1}) ‖ p(x_t | x_{t+1})) in the mean over both neighbours."""
    sigmas, x0 = ladder(3, 1.2, 0.8), fourfold(POINTS)
    high, here, low = sigmas[:3].tolist()
    draw = Signs()
    before = x0 + low * draw(x0)
    after = before + math.sqrt(high**2 - low**2) * draw(x0)
    denoised = DATA(after, high)
    keep, std = bridge(high, here)
    kl = gaussian_kl(before, math.sqrt(here**2 - low**2), denoised + keep * (after - denoised), std)
    right = averaged(consistency_vlb(DATA, x0, sigmas, decoder=Density(), noise=Signs())).steps[0]
    assert bool((kl.reshape(-1, 4).mean(1) > right + 0.1).all())


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_one_path_and_fresh_draws_agree_in_the_mean(form):
    n = 40_000
    x0 = torch.full((n, 1), 0.7, dtype=torch.float64)
    exact = averaged(vlb(Wrong(), fourfold(POINTS[:1] * 0 + 0.7), ladder(6), decoder=Density(), noise=Signs())).total
    noise = seeded()
    for shared in (False, True):
        found = form(
            Wrong(),
            x0,
            ladder(6),
            decoder=Density(),
            noise=noise,
            shared=shared,
        ).total
        assert abs(float(found.mean() - exact)) < 4 * float(found.std()) / math.sqrt(n)


def test_the_consistency_form_is_noisier_and_more_so_with_more_steps():
    n, spreads = 4000, []
    for count in (8, 64):
        x0 = torch.full((n, 1), 0.7, dtype=torch.float64)
        noise = seeded()
        for form in FORMS:
            found = form(
                DATA,
                x0,
                ladder(count),
                decoder=Density(),
                std=0.1,
                noise=noise,
            )
            spreads.append(float((found.prior + found.diffusion).var()))
    few, few_consistency, many, many_consistency = spreads
    assert many_consistency > 10 * many
    assert many_consistency > few_consistency
    assert many < few


class Seen:
    """Keeps the states it is called with."""

    def __init__(self):
        self.states = {}

    def __call__(self, x, sigma, **cond):
        self.states[sigma] = x
        return x


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shared", [False, True])
def test_the_states_have_the_marginals_and_the_path_its_covariance(form, shared):
    n, seen, sigmas = 20_000, Seen(), ladder(4)
    noise = seeded()
    form(
        seen,
        torch.zeros(n, 1).double(),
        sigmas,
        decoder=Density(),
        noise=noise,
        shared=shared,
    )
    levels = sigmas[:-1]
    states = torch.cat([seen.states[float(level)] for level in levels], 1)
    squares = states.T @ states / n
    expected = torch.minimum(levels[:, None], levels[None]) ** 2 if shared else torch.diag(levels**2)
    # Standard errors of the entries: √((c_ii c_jj + c_ij²)/n).
    error = torch.sqrt((torch.outer(levels, levels) ** 2 + expected**2) / n)
    assert bool(((squares - expected).abs() < 4.5 * error).all())


def test_per_sample_noise_makes_the_bound_a_function_of_the_seed():
    mixture = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.3)
    x0 = mixture.sample(6, generator=torch.Generator().manual_seed(0))
    whole = vlb(mixture, x0, ladder(4), decoder=Density(), noise=PerSample(range(6))).total
    part = vlb(mixture, x0[2:4], ladder(4), decoder=Density(), noise=PerSample([2, 3])).total
    torch.testing.assert_close(whole[2:4], part)


def test_step_kl_is_half_the_gain_in_snr_times_the_error_and_differentiable():
    x0, x = PerSample([0, 1]).normal((3,)), PerSample([2, 3]).normal((3,))
    denoised = (x / 2).requires_grad_()
    found = step_kl(x0, x, denoised, 2.0, 0.5)
    torch.testing.assert_close(found, (0.5**-2 - 2.0**-2) / 2 * (x0 - denoised).square().sum(1))
    found.sum().backward()
    assert bool((denoised.grad != 0).all())


@given(st.floats(0.01, 50.0), st.floats(1e-6, 0.999999))
def test_the_bridge_is_the_product_of_two_gaussians(sigma, ratio):
    """q(x_σ' | x_σ, x_0) ∝ q(x_σ | x_σ') q(x_σ' | x_0): precisions add."""
    keep, std = bridge(sigma, ratio * sigma)
    precision = 1 / (ratio * sigma) ** 2 + 1 / (sigma**2 * (1 - ratio) * (1 + ratio))
    assert std**-2 == pytest.approx(precision, rel=1e-9)
    assert keep == pytest.approx(1 / (sigma**2 * (1 - ratio) * (1 + ratio)) / precision, rel=1e-9)


def test_gaussian_kl_is_that_of_torch():
    draw = PerSample([0])
    mean, other = draw.normal((50,)), draw.normal((50,))
    std, other_std = draw.normal((50,)).exp(), draw.normal((50,)).exp()
    truth = kl_divergence(Normal(mean, std), Normal(other, other_std))
    torch.testing.assert_close(gaussian_kl(mean, std, other, other_std), truth)


def test_the_prior_is_the_chains_standard_normal_in_its_own_coordinates():
    x0, sigma = PerSample([0, 1]).normal((3,)), 1.7
    s = (1 + sigma**2) ** -0.5
    truth = kl_divergence(Normal(s * x0, s * sigma), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(prior_kl(Gaussian(0.0, 1.0), x0, sigma, sigma), truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(), (2,), (1, 4, 4)], ids=str)
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_shapes_and_dtypes(form, shape, dtype):
    x0 = torch.zeros(3, *shape, dtype=dtype)
    found = form(Gaussian(0.0, 0.5), x0, ladder(4), noise=PerSample([0, 1, 2]))
    assert found.steps.shape == (3, 3)
    assert found.total.shape == found.prior.shape == found.reconstruction.shape == (3,)
    assert found.total.dtype == torch.float64
    assert bool(found.total.isfinite().all())
    assert found.dim == math.prod(shape)


# The discretised Gaussian.

GREYS = GreyLevels()


@given(st.floats(-20, 20), st.floats(1e-3, 1e3), st.sampled_from([torch.float32, torch.float64]))
def test_the_masses_of_all_levels_sum_to_one(mean, std, dtype):
    values = GREYS.values.to(dtype)
    found = GREYS.log_mass(values, torch.full((17,), mean, dtype=dtype), std).logsumexp(0)
    assert abs(float(found)) < (1e-5 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_masses_are_exact_far_out_in_both_tails(dtype):
    """Against 60 digits; 1 − Φ has none left from 9 standard deviations on."""
    with mpmath.workdps(60):
        for mean in (-1.9, -0.8, 0.03, 0.8, 1.9):
            found = GREYS.log_mass(GREYS.values.to(dtype), torch.full((17,), mean, dtype=dtype), 0.05).tolist()
            for value, mass in zip(GREYS.values.tolist(), found, strict=True):
                low = -mpmath.inf if value == -1 else (mpmath.mpf(value) - mpmath.mpf(1) / 16 - mean) / 0.05
                high = mpmath.inf if value == 1 else (mpmath.mpf(value) + mpmath.mpf(1) / 16 - mean) / 0.05
                tail = mpmath.ncdf(-low) - mpmath.ncdf(-high) if value > mean else mpmath.ncdf(high) - mpmath.ncdf(low)
                truth = float(mpmath.log(tail))
                assert mass == pytest.approx(truth, rel=2e-5 if dtype == torch.float32 else 1e-11, abs=1e-7)


def test_gradients_stay_finite_in_the_tails():
    mean = torch.tensor([-30.0, -1.0, 0.0, 1.0, 30.0])[:, None].requires_grad_()
    std = torch.tensor(0.02, requires_grad=True)
    GREYS.log_mass(GREYS.values.float(), mean, std).sum().backward()
    assert bool(mean.grad.isfinite().all())
    assert math.isfinite(float(std.grad))


def test_fine_levels_tend_to_the_density():
    fine = GreyLevels(200_001, -10.0, 10.0)
    x = torch.tensor([[-0.5, 0.0, 1.2]], dtype=torch.float64)
    found = fine.log_mass(x, torch.zeros(1, 3).double(), 0.7) - math.log(fine.spacing)
    torch.testing.assert_close(found.sum(1), Density().log_prob(x, torch.zeros(1, 3).double(), 0.7), rtol=1e-6, atol=0)


@given(st.floats(-3, 3), st.floats(0.01, 3))
def test_the_expected_level_is_the_mean_over_the_masses(mean, std):
    at = torch.tensor(mean, dtype=torch.float64)
    truth = (GREYS.values * GREYS.log_mass(GREYS.values, at.expand(17), std).exp()).sum()
    torch.testing.assert_close(GREYS.expected(at, torch.tensor(std)), truth, rtol=0, atol=1e-7)


def test_samples_have_the_masses():
    noise = seeded()
    mean = torch.full((20_000,), 0.8, dtype=torch.float64)
    drawn = GREYS.sample(mean, 0.2, noise=noise)
    GREYS.check(drawn)
    share = (drawn[:, None] - GREYS.values).abs().lt(1e-6).double().mean(0)
    masses = GREYS.log_mass(GREYS.values, mean[:17], 0.2).exp()
    assert bool(((share - masses).abs() < 4.5 * torch.sqrt(masses / 20_000) + 1e-4).all())


def test_a_density_is_sampled_and_expected():
    mean = torch.tensor([0.5, -1.0])
    torch.testing.assert_close(Density().sample(mean, 2.0, noise=torch.ones_like), mean + 2)
    assert Density().expected(mean, 2.0) is mean


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((1,), "count"), ((17, 1.0, -1.0), "low"), ((17, -math.inf, 1.0), "low"), ((17, 0.0, math.nan), "high")],
    ids=str,
)
def test_impossible_levels_are_refused(arguments, name):
    with pytest.raises(ValueError, match=name):
        GreyLevels(*arguments)


@pytest.mark.parametrize("value", [0.06, 1.125, -2.0, math.nan])
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_values_off_the_levels_are_refused(form, value):
    with pytest.raises(ValueError, match="17 grey levels"):
        form(DATA, torch.full((2, 1), value), ladder(3))


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_what_is_not_finite_and_wrong_levels_are_refused(form):
    with pytest.raises(ValueError, match="finite"):
        form(DATA, torch.full((2, 1), math.inf), ladder(3), decoder=Density())
    with pytest.raises(ValueError, match="sigmas"):
        form(DATA, torch.zeros(2, 1), torch.tensor([1.0, 2.0, 0.0]))


@pytest.mark.parametrize(("sigma", "sigma_next"), [(1.0, 1.0), (1.0, 2.0), (1.0, -0.1), (math.inf, 1.0)])
def test_a_bridge_that_does_not_fall_is_refused(sigma, sigma_next):
    with pytest.raises(ValueError, match="sigma_next"):
        bridge(sigma, sigma_next)


def test_a_gaussian_step_to_level_zero_is_refused():
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="decoder"):
        step_kl(x, x, x, 1.0, 0.0)
