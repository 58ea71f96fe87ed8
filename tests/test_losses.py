"""The noise distribution's law, and the loss of denoisers whose loss is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edmnotes import data, networks, training
from edmnotes.exact import Gaussian, GaussianMixture
from edmnotes.losses import (
    ByLevel,
    LogNormal,
    LogUniform,
    LogVariance,
    UniformLevels,
    UniformTime,
    by_level,
    denoising,
    denoising_score_matching,
    implicit_score_matching,
    reachable,
    sliced_score_matching,
)
from edmnotes.preconditioning import EDM, Denoiser
from edmnotes.schedules import VP, FlowMatching

PAIR = torch.tensor([0.5, 2.0], dtype=torch.float64)


class Zero(nn.Module):
    def forward(self, x, c_noise):
        return torch.zeros_like(x)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_log_normal_has_its_mean_and_std():
    logs = LogNormal(-1.2, 1.2).sample(100_000, generator=seeded()).log()
    # Standard errors 0.0038 and 0.0027.
    assert float(logs.mean()) == pytest.approx(-1.2, abs=0.015)
    assert float(logs.std()) == pytest.approx(1.2, abs=0.011)


def test_a_generator_gives_the_same_levels():
    first, again = (LogNormal().sample(5, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.dtype == torch.float64


@pytest.mark.parametrize("sigma", [0.002, 0.1, 1.0, 80.0])
def test_a_zero_network_loses_one_at_every_level_on_centred_data(sigma):
    x0 = 0.5 * torch.randn(20_000, 10, generator=seeded(), dtype=torch.float64)
    eps = torch.randn(x0.shape, generator=seeded(1), dtype=torch.float64)
    loss = denoising(Denoiser(Zero(), EDM(0.5)), x0, torch.full((20_000,), sigma).double(), eps)
    assert loss.shape == (20_000,)
    # 2e5 squared normals: standard error √(2/2e5) = 0.0032.
    assert float(loss.mean()) == pytest.approx(1, abs=0.013)


def test_a_perfect_denoiser_of_a_point_loses_nothing():
    class Perfect(nn.Module):
        """F for which D is the constant 0.3: F = (0.3 − c_skip x) / c_out."""

        def forward(self, x, c_noise):
            sigma = (4 * c_noise).exp()[:, None]
            c = EDM(0.5)
            return (0.3 - c.c_skip(sigma) * x / c.c_in(sigma)) / c.c_out(sigma)

    x0, sigma = torch.full((4, 2), 0.3).double(), torch.tensor([0.1, 0.5, 1.0, 5.0]).double()
    loss = denoising(Denoiser(Perfect(), EDM(0.5)), x0, sigma, torch.randn(4, 2, generator=seeded()).double())
    torch.testing.assert_close(loss, torch.zeros(4).double(), rtol=0, atol=1e-12)


def test_gradients_reach_the_network():
    network = nn.Linear(2, 2)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, c_noise):
            return self.inner(x)

    denoising(Denoiser(Wrapped(), EDM()), torch.ones(3, 2), torch.ones(3), torch.ones(3, 2)).mean().backward()
    assert float(network.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("arguments", "name"), [({"std": 0.0}, "std"), ({"std": math.nan}, "std"), ({"mean": math.inf}, "mean")]
)
def test_impossible_constants_are_refused(arguments, name):
    with pytest.raises(ValueError, match=name):
        LogNormal(**arguments)


def test_shapes_that_do_not_fit_are_refused():
    denoiser = Denoiser(Zero(), EDM())
    with pytest.raises(ValueError, match="noise has shape"):
        denoising(denoiser, torch.zeros(3, 2), torch.ones(3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="sigma has shape"):
        denoising(denoiser, torch.zeros(3, 2), torch.ones(2), torch.zeros(3, 2))


def test_log_uniform_is_uniform_in_the_logarithm():
    logs = LogUniform(0.02, 100.0).sample(100_000, generator=seeded()).log()
    low, high = math.log(0.02), math.log(100.0)
    assert low <= float(logs.min()) < low + 0.01
    assert high - 0.01 < float(logs.max()) <= high
    quartiles = torch.quantile(logs, torch.tensor([0.25, 0.5, 0.75]).double())
    # Standard error of a quartile: 8.5 √(3/16 / 1e5) = 0.012.
    torch.testing.assert_close(
        quartiles, low + (high - low) * torch.tensor([0.25, 0.5, 0.75]).double(), rtol=0, atol=0.06
    )


def test_uniform_time_is_uniform_in_the_time():
    distribution = UniformTime(VP(), 1e-5, 1.0)
    times = VP().sigma_inv(distribution.sample(100_000, generator=seeded()))
    assert float(times.min()) >= 1e-5 * (1 - 1e-9)
    assert float(times.max()) <= 1
    # Standard errors 0.0009 and 0.0004.
    assert float(times.mean()) == pytest.approx(0.5, abs=0.004)
    assert float(times.var()) == pytest.approx(1 / 12, abs=0.0015)


def test_uniform_levels_are_drawn_equally_often():
    levels = torch.tensor([0.1, 1.0, 10.0])
    drawn = UniformLevels(levels).sample(30_000, generator=seeded())
    for level in levels.double():
        # Standard error of a count: 82.
        assert int((drawn == level).sum()) == pytest.approx(10_000, abs=330)


@pytest.mark.parametrize(
    "distribution",
    [LogNormal(), LogUniform(), UniformTime(), UniformTime(FlowMatching(), 1e-3, 0.999), UniformLevels(PAIR)],
    ids=lambda d: type(d).__name__,
)
@given(n=st.integers(1, 50), seed=st.integers(0, 2**31))
def test_every_distribution_draws_positive_levels_from_the_generator_alone(distribution, n, seed):
    before = torch.random.get_rng_state()
    drawn = distribution.sample(n, generator=seeded(seed))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (drawn.shape, drawn.dtype, drawn.device.type) == ((n,), torch.float64, "cpu")
    assert bool(((drawn > 0) & (drawn < torch.inf)).all())


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: LogUniform(0.0, 1.0), "sigma_min"),
        (lambda: LogUniform(2.0, 1.0), "sigma_min"),
        (lambda: UniformTime(VP(), 1.0, 0.5), "start"),
        (lambda: UniformTime(VP(), 0.0, 1.0), "start"),
        (lambda: UniformTime(FlowMatching(), 0.1, 1.0), "outside the domain"),
        (lambda: UniformLevels(torch.tensor([])), "levels"),
        (lambda: UniformLevels([1.0, 0.0]), "levels"),
        (lambda: UniformLevels([[1.0]]), "levels"),
    ],
)
def test_impossible_distributions_are_refused(make, name):
    with pytest.raises(ValueError, match=name):
        make()


# --- score matching -------------------------------------------------------------------------------------------------

MATRIX = torch.tensor([[-1.5, 0.7, 0.2], [0.1, -0.8, -0.4], [0.3, 0.5, -2.0]], dtype=torch.float64)
MIXTURE = GaussianMixture([[-1.0, 0.5], [1.2, 0.0], [0.3, -1.0]], [0.4, 0.6, 0.5], [0.5, 0.3, 0.2])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def signs(*shape, seed=0):
    return torch.randint(2, shape, generator=seeded(seed)).double() * 2 - 1


def linear(x):
    return x @ MATRIX.T + 0.3


def assert_mean(values, expected, *, error):
    """The mean is as expected to 4.5 standard errors, and these are at most ``error``, so that it says something."""
    values = values.detach()
    standard = float(values.std()) / len(values) ** 0.5
    assert standard < error, standard
    assert abs(float(values.mean()) - expected) < 4.5 * standard, (float(values.mean()), expected, standard)


def test_implicit_score_matching_of_an_affine_score_in_closed_form():
    x = normal(5, 3)
    expected = (linear(x) ** 2).sum(1) / 2 + MATRIX.trace()
    torch.testing.assert_close(implicit_score_matching(linear, x), expected, rtol=0, atol=1e-12)


def mixing(x):
    """A score in which every coordinate of a sample depends on all the others, and on no other sample."""
    flat = x.reshape(len(x), -1)
    return (flat.sin() + flat.sum(1, keepdim=True) ** 2 * flat.cos()).reshape(x.shape)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3, 2)], ids=str)
def test_the_divergence_is_the_trace_of_each_samples_own_jacobian(shape):
    x = normal(*shape)
    loss = implicit_score_matching(mixing, x)
    v = signs(*shape)
    sliced = sliced_score_matching(mixing, x, v)
    for i in range(4):
        jacobian = torch.func.jacrev(lambda one: mixing(one[None])[0].flatten())(x[i]).reshape(x[i].numel(), -1)
        square = (mixing(x)[i] ** 2).sum() / 2
        torch.testing.assert_close(loss[i], square + jacobian.trace())
        torch.testing.assert_close(sliced[i], square + v[i].flatten() @ jacobian @ v[i].flatten())


def wrong(x):
    """Not the score of the mixture, and not a gradient either."""
    return torch.stack([torch.tanh(x[:, 1]) - 0.5 * x[:, 0], x[:, 0].sin() - 0.8 * x[:, 1]], 1)


def test_implicit_score_matching_differs_from_the_fisher_divergence_by_hyvarinens_constant():
    """E loss + ½ E|∇log p|² = ½ E|s − ∇log p|², for a wrong score; for the true one the divergence is 0."""
    sigma = 0.3
    x = MIXTURE.sample(100_000, generator=seeded()) + sigma * normal(100_000, 2, seed=1)
    true = MIXTURE.score(x, sigma)
    fisher = ((wrong(x) - true) ** 2).sum(1) / 2
    assert float(fisher.mean()) > 1  # there is something to see
    assert_mean(implicit_score_matching(wrong, x) + (true**2).sum(1) / 2 - fisher, 0, error=0.01)
    at_truth = implicit_score_matching(lambda x: MIXTURE.score(x, sigma), x)
    assert_mean(at_truth + (true**2).sum(1) / 2, 0, error=0.02)


def test_denoising_score_matching_exceeds_the_implicit_one_by_half_the_dimension_over_sigma_squared():
    sigma = 0.5
    x0, noise = MIXTURE.sample(200_000, generator=seeded()), normal(200_000, 2, seed=1)
    for score in (wrong, lambda x: MIXTURE.score(x, sigma)):
        difference = denoising_score_matching(score, x0, sigma, noise) - implicit_score_matching(
            score, x0 + sigma * noise
        )
        assert_mean(difference, 2 / (2 * sigma**2), error=0.02)


def test_the_denoising_loss_is_denoising_score_matching_in_other_units():
    network = networks.MLP(2, width=16, depth=1)
    nn.init.normal_(network.last.weight, generator=seeded())
    denoiser = Denoiser(network.double(), EDM(0.7))
    x0, noise, sigma = normal(6, 2), normal(6, 2, seed=1), torch.tensor([0.1, 0.3, 0.7, 1.0, 3.0, 9.0]).double()
    matching = denoising_score_matching(lambda x: (denoiser(x, sigma) - x) / sigma[:, None] ** 2, x0, sigma, noise)
    expected = denoising(denoiser, x0, sigma, noise)
    torch.testing.assert_close(matching * 2 * sigma**4 * EDM(0.7).weight(sigma) / 2, expected)


def test_slices_along_signs_are_exact_where_the_jacobian_is_diagonal():
    x, slopes = normal(7, 3), torch.tensor([-0.5, -2.0, 1.0]).double()
    assert torch.allclose(
        sliced_score_matching(lambda x: slopes * x, x, signs(7, 3)),
        implicit_score_matching(lambda x: slopes * x, x),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize(("draw", "diagonal"), [(normal, True), (signs, False)], ids=["normal", "signs"])
def test_the_mean_and_the_variance_of_slices_are_as_promised(draw, diagonal):
    """At one point of a linear score: 2 Σ S_ij² for normal v, the sum without the diagonal for signs."""
    n = 100_000
    x = normal(1, 3).expand(n, 3)
    loss = sliced_score_matching(linear, x, draw(n, 3, seed=1))
    assert_mean(loss, float(implicit_score_matching(linear, x[:1]).detach()), error=0.02)
    symmetric = (MATRIX + MATRIX.T) / 2
    squares = symmetric**2 if diagonal else symmetric**2 - torch.diag(symmetric.diagonal() ** 2)
    # Quadratic forms have heavier tails than a normal: the variance is known to about 2 %.
    assert float(loss.detach().var()) == pytest.approx(2 * float(squares.sum()), rel=0.06)


def test_an_energy_that_nobody_normalised_is_fitted_through_second_derivatives():
    """q = exp(−θ x² / 2): the loss of a sample is ½ θ² x² − θ, its gradient by θ is θ x² − 1."""
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def score(x):
        return torch.autograd.grad((-theta * x**2 / 2).sum(), x, create_graph=True)[0]

    x = normal(9)
    for loss in (implicit_score_matching(score, x), sliced_score_matching(score, x, signs(9))):
        torch.testing.assert_close(loss.detach(), 0.49 * x**2 / 2 - 0.7)
        (gradient,) = torch.autograd.grad(loss.sum(), theta)
        torch.testing.assert_close(gradient, (0.7 * x**2 - 1).sum())


@pytest.mark.parametrize("loss", [implicit_score_matching, lambda score, x: sliced_score_matching(score, x, x.sign())])
def test_without_gradients_the_loss_is_the_same_and_holds_no_graph(loss):
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(4, 3, generator=seeded())
    with_graph = loss(network, x)
    with torch.no_grad():
        without = loss(network, x)
    assert with_graph.requires_grad
    assert not without.requires_grad
    assert not x.requires_grad
    assert without.dtype == torch.float32
    assert torch.equal(with_graph.detach(), without)


@pytest.mark.parametrize("loss", [implicit_score_matching, lambda score, x: sliced_score_matching(score, x, x.sign())])
def test_a_score_that_ignores_x_has_no_divergence(loss):
    shift = torch.ones(3, requires_grad=True)
    x = torch.randn(4, 3, generator=seeded())
    torch.testing.assert_close(loss(lambda x: 2 * torch.ones_like(x), x), torch.full((4,), 6.0))
    (gradient,) = torch.autograd.grad(loss(lambda x: shift.expand_as(x), x).sum(), shift)
    torch.testing.assert_close(gradient, torch.full((3,), 4.0))


@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4), single=st.booleans(), seed=st.integers(0, 2**31))
def test_every_matching_loss_is_finite_one_a_sample_in_the_dtype_of_x(shape, single, seed):
    dtype = torch.float32 if single else torch.float64
    x, v = normal(*shape, seed=seed).to(dtype), signs(*shape, seed=seed).to(dtype)
    for loss in (
        implicit_score_matching(mixing, x),
        sliced_score_matching(mixing, x, v),
        denoising_score_matching(mixing, x, 0.5, v),
    ):
        assert (loss.shape, loss.dtype) == (x.shape[:1], dtype)
        assert bool(loss.isfinite().all())


def test_scores_of_another_shape_are_refused():
    x = torch.ones(3, 2)
    for call in (
        lambda s: implicit_score_matching(s, x),
        lambda s: sliced_score_matching(s, x, x),
        lambda s: denoising_score_matching(s, x, 1.0, x),
    ):
        with pytest.raises(ValueError, match=r"score returned shape \(3,\) for x of shape \(3, 2\)"):
            call(lambda x: x.sum(1))
    with pytest.raises(ValueError, match=r"v has shape \(3, 1\), x \(3, 2\)"):
        sliced_score_matching(lambda x: x, x, x[:, :1])
    with pytest.raises(ValueError, match=r"noise has shape \(3, 1\), x0 \(3, 2\)"):
        denoising_score_matching(lambda x: x, x, 1.0, x[:, :1])


@pytest.mark.parametrize(
    "sigma", [0.0, -1.0, math.nan, math.inf, torch.tensor([1.0, 0.0, 1.0]), torch.ones(2)], ids=str
)
def test_impossible_levels_of_a_score_are_refused(sigma):
    with pytest.raises(ValueError, match="sigma"):
        denoising_score_matching(lambda x: x, torch.ones(3, 2), sigma, torch.ones(3, 2))


# --- the learned log-variance ---------------------------------------------------------------------------------------


def test_a_log_variance_starts_as_nothing():
    loss, sigma = torch.tensor([0.5, 2.0]), torch.tensor([0.1, 10.0])
    u = LogVariance()
    assert torch.equal(u(sigma), torch.zeros(2))
    assert torch.equal(u.objective(loss, sigma), loss)


def test_the_learned_log_variance_is_the_logarithm_of_the_loss_at_each_level():
    """A zero network told a sigma_data of 0.5 for data of 2 loses (4 σ² + 0.5⁴) / ((σ² + 0.5²) 0.5²): from 1 to 16."""
    denoiser, g = Denoiser(Zero(), EDM(0.5)), seeded()
    u = LogVariance()
    optimizer = torch.optim.Adam(u.parameters(), lr=0.02)
    rounds = 600
    for i in range(rounds):
        sigma = LogNormal(-0.5, 1.2).sample(256, generator=g)
        x0, noise = (torch.randn(256, 8, generator=g, dtype=torch.float64) for _ in range(2))
        optimizer.zero_grad()
        u.objective(denoising(denoiser, 2 * x0, sigma, noise), sigma).mean().backward()
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - i / rounds)
        optimizer.step()
    sigma = torch.logspace(-1.1, 0.7, 7, dtype=torch.float64)
    expected = ((4 * sigma**2 + 0.5**4) / ((sigma**2 + 0.5**2) * 0.5**2)).log()
    assert float(expected.max() - expected.min()) > 2
    torch.testing.assert_close(u(sigma).double().detach(), expected, rtol=0, atol=0.1)
    measured = by_level(denoiser, 2 * normal(4000, 8), sigma)
    torch.testing.assert_close(measured.loss.log(), expected, rtol=0, atol=0.06)


@pytest.mark.parametrize("features", [0, 3, -2])
def test_impossible_features_are_refused(features):
    with pytest.raises(ValueError, match=f"features = {features}"):
        LogVariance(features)


# --- the loss at each level -----------------------------------------------------------------------------------------

LEVELS = torch.logspace(-1.5, 1.5, 7, dtype=torch.float64)


def test_the_loss_by_level_of_an_exact_denoiser_in_closed_form():
    """Data of std 1 under the weight for 0.5: the least loss is σ² / (σ² + 1) · λ(σ), and its error is as stated.

    The data come from torch's generator of seed 0, the noise from seeds 0, 1, ...: these must not be the same numbers.
    """
    expected = LEVELS**2 / (LEVELS**2 + 1) * EDM(0.5).weight(LEVELS)
    gaussian, x0 = Gaussian(0.0, 1.0), normal(3000, 4)
    curves = [by_level(gaussian, x0, LEVELS, weight=EDM(0.5).weight, seed=seed) for seed in range(12)]
    off = torch.stack([(curve.loss - expected) / curve.error for curve in curves])
    assert float(off.abs().max()) < 4
    assert 0.75 < float(off[:, :4].std()) < 1.3  # at high levels the loss depends on x0, which is shared, alone
    assert all(torch.equal(curve.sigmas, LEVELS) for curve in curves)


def test_batches_and_labels_change_nothing_but_what_they_say():
    split = data.load("moons")
    x0, labels = split.held_out.x[:100], split.held_out.labels[:100]
    denoiser = training.untrained(split.train)
    nn.init.normal_(denoiser.network.last.weight, generator=seeded())
    whole = by_level(denoiser, x0, LEVELS, labels=labels)
    parts = by_level(denoiser, x0, LEVELS, labels=labels, batch=7)
    torch.testing.assert_close(whole.loss, parts.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(whole.error, parts.error, rtol=1e-5, atol=0)
    assert not torch.allclose(by_level(denoiser, x0, LEVELS).loss, whole.loss, rtol=1e-3)
    assert not torch.allclose(by_level(denoiser, x0, LEVELS, labels=labels, seed=1).loss, whole.loss, rtol=1e-3)
    assert (whole.loss.dtype, whole.loss.requires_grad) == (torch.float64, False)


def test_the_gain_over_the_levels_adds_up_to_the_information_in_the_data():
    """∫ c_skip (1 − least loss) d ln σ = KL(data || N(mean, sigma_data²)) / d: what there is to learn, in nats."""
    mixture = GaussianMixture([-1.0, 1.0], 0.2)
    std = math.sqrt(1.04)
    sigmas = torch.logspace(-3, 3, 200, dtype=torch.float64)
    curve = by_level(mixture, mixture.sample(4000, generator=seeded()), sigmas, weight=EDM(std).weight)
    nats = torch.trapezoid(EDM(std).c_skip(sigmas) * (1 - curve.loss), sigmas.log())
    x = torch.linspace(-4, 4, 20001, dtype=torch.float64)
    log_p = mixture.log_prob(x, 0.0)
    divergence = torch.trapezoid(log_p.exp() * (log_p - Gaussian(0.0, std).log_prob(x, 0.0)), x)
    assert float(divergence) > 0.5
    assert float(nats) == pytest.approx(float(divergence), abs=0.03)


@pytest.mark.parametrize(
    "sigmas", [[1.0, 0.5], [1.0, 1.0], [0.0, 1.0], [-1.0, 1.0], [1.0, math.inf], [math.nan], [], [[1.0]]], ids=str
)
def test_levels_that_do_not_rise_are_refused(sigmas):
    for call in (
        lambda s: by_level(Denoiser(Zero(), EDM()), torch.ones(3, 2), s),
        lambda s: reachable(normal(9, 2), s),
    ):
        with pytest.raises(ValueError, match="sigmas = "):
            call(torch.tensor(sigmas))


def test_a_measurement_without_weight_or_spread_is_refused():
    with pytest.raises(ValueError, match="weight is None, and a Gaussian has none"):
        by_level(Gaussian(0.0, 1.0), normal(9, 2), LEVELS)
    with pytest.raises(ValueError, match="x0 holds 1 samples"):
        by_level(Denoiser(Zero(), EDM()), normal(1, 2), LEVELS)


# --- what the data tell of the levels to train on -------------------------------------------------------------------


def two_scales(n, a=3.0, b=0.1):
    return normal(n, 8) * torch.tensor([a] * 4 + [b] * 4, dtype=torch.float64)


def two_scale_gain(sigmas, a, b):
    scale = (a**2 + b**2) / 2
    gains = [sigmas**2 * (scale - v) / ((v + sigmas**2) * scale) for v in (a**2, b**2)]
    return sum(gains) / 2


@pytest.mark.parametrize(("a", "b"), [(2.0, 1.0), (3.0, 0.1), (50.0, 0.5)])
def test_a_log_normal_fitted_to_two_scales_has_the_closed_form(a, b):
    """Gaussian data with two scales: mean ln √(ab), variance (ln²(a/b) + π²) / 12."""
    sigmas = torch.logspace(-6, 6, 2001, dtype=torch.float64)
    curve = ByLevel(sigmas, 1 - two_scale_gain(sigmas, a, b), torch.zeros(2001, dtype=torch.float64))
    fitted = LogNormal.fitted(curve)
    assert fitted.mean == pytest.approx(math.log(a * b) / 2, abs=1e-3)
    assert fitted.std == pytest.approx(math.sqrt((math.log(a / b) ** 2 + math.pi**2) / 12), abs=1e-3)


def test_what_linear_denoisers_reach_is_found_from_the_data_alone():
    """On Gaussian data the bound is the exact least loss, and the fit from 2000 samples near the closed form."""
    curve = reachable(two_scales(2000))
    expected = 1 - two_scale_gain(curve.sigmas, 3.0, 0.1)
    # A covariance estimated from 1000 samples loses a little.
    assert bool(((curve.loss - expected).abs() < 0.01 + 4.5 * curve.error).all())
    assert float(curve.error.max()) < 0.02
    fitted = LogNormal.fitted(curve)
    assert fitted.mean == pytest.approx(math.log(0.3) / 2, abs=0.05)
    assert fitted.std == pytest.approx(math.sqrt((math.log(30) ** 2 + math.pi**2) / 12), abs=0.05)


def test_what_neighbours_reach_is_found_too_and_is_never_less_than_the_least_loss():
    points = data.eight_gaussians(2000).x.double()
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    exact = GaussianMixture(math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1), 0.1)
    curve = reachable(points)
    least = by_level(exact, exact.sample(4000, generator=seeded(5)), curve.sigmas, weight=EDM(1.005).weight)
    assert float(least.loss.min()) < 0.35
    spread = (curve.error**2 + least.error**2).sqrt()
    assert bool((curve.loss > least.loss - 4 * spread - 0.01).all())
    middle = (curve.sigmas > 0.1) & (curve.sigmas < 10)
    torch.testing.assert_close(curve.loss[middle], least.loss[middle], rtol=0, atol=0.08)
    assert bool((curve.loss <= 1).all())


def test_the_fit_follows_the_units_of_the_data():
    points = data.moons(1000).x
    one, other = (LogNormal.fitted(reachable(k * points)) for k in (1.0, 8.0))
    assert other.mean == pytest.approx(one.mean + math.log(8), abs=1e-9)
    assert other.std == pytest.approx(one.std, abs=1e-9)


def test_images_are_fitted_as_points_are():
    points = two_scales(300)
    flat, image = reachable(points), reachable(points.reshape(300, 2, 2, 2))
    assert torch.equal(flat.loss, image.loss)


def test_data_in_more_dimensions_than_samples_are_bounded_too():
    curve = reachable(normal(20, 64) * torch.linspace(0.1, 2, 64))
    assert bool(((curve.loss > 0) & (curve.loss <= 1)).all())


@given(
    n=st.integers(4, 12),
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    units=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**31),
)
def test_the_bound_is_finite_between_0_and_1_for_any_data(n, shape, units, seed):
    curve = reachable(units * normal(n, *shape, seed=seed), seed=seed)
    assert bool(curve.error.isfinite().all())
    assert bool(((curve.loss >= 0) & (curve.loss <= 1)).all())


def test_data_with_nothing_to_learn_are_refused():
    with pytest.raises(ValueError, match="nothing is to be learnt beyond the mean and sigma_data"):
        LogNormal.fitted(reachable(normal(2000, 4)))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(3, 2), r"x has shape \(3, 2\)"),
        (torch.ones(9), r"x has shape \(9,\)"),
        (torch.ones(9, 2), "x must vary"),
        (torch.tensor([[math.nan, 1.0]] * 9), "finite"),
    ],
    ids=["few", "flat", "constant", "nan"],
)
def test_data_that_tell_nothing_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        reachable(x)
