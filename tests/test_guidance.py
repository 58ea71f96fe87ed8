"""Guidance on mixtures, where every conditional denoiser and every gradient is known in closed form."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edmnotes import data, guidance, losses, samplers, steps, training
from edmnotes.exact import ByClass, Empirical, Gaussian, GaussianMixture
from edmnotes.guidance import Extrapolated, Measured, Tilted, Unconditional, classifier_free

SIGMAS = [1e-2, 0.3, 1.0, 20.0]
CLASSES = ByClass(
    [GaussianMixture([[-1.0, 0.5], [-2.0, -1.0]], [0.3, 0.5]), Gaussian([1.5, 0.0], [0.4, 0.8])], weights=[1, 3]
)
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 0, 1, 1, 0])


def class_potential(x, sigma, *, labels):
    return CLASSES.class_log_prob(x, sigma).gather(1, labels[:, None]).squeeze(1)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_classifier_guidance_at_scale_one_is_the_conditional_denoiser(sigma):
    guided = Tilted(Unconditional(CLASSES), class_potential)
    assert torch.allclose(guided(X, sigma, labels=LABELS), CLASSES(X, sigma, labels=LABELS), rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_classifier_free_and_classifier_guidance_are_one(scale):
    """The difference of the two models is the classifier's gradient, so both move by the same."""
    free, tilted = classifier_free(CLASSES, scale), Tilted(Unconditional(CLASSES), class_potential, scale)
    for sigma in SIGMAS:
        assert torch.allclose(free(X, sigma, labels=LABELS), tilted(X, sigma, labels=LABELS), rtol=1e-9, atol=1e-9)


def test_the_scales_zero_one_and_two_of_classifier_free_guidance():
    told, untold = CLASSES(X, 0.7, labels=LABELS), CLASSES(X, 0.7)
    assert torch.equal(classifier_free(CLASSES, 0.0)(X, 0.7, labels=LABELS), untold)
    assert torch.equal(classifier_free(CLASSES, 1.0)(X, 0.7, labels=LABELS), told)
    assert torch.allclose(classifier_free(CLASSES, 2.0)(X, 0.7, labels=LABELS), 2 * told - untold)


def test_the_papers_weight():
    """ε = (1 + w) ε_c − w ε_u, with ε = (x − D) / σ."""
    w, sigma = 0.3, 0.7
    told, untold = ((X - CLASSES(X, sigma, **cond)) / sigma for cond in ({"labels": LABELS}, {}))
    paper = X - sigma * ((1 + w) * told - w * untold)
    ours = classifier_free(CLASSES, guidance.scale_from_paper(w))(X, sigma, labels=LABELS)
    assert torch.allclose(ours, paper, rtol=0, atol=1e-12)


def test_a_constant_gradient_at_level_zero_is_the_tilted_density():
    """exp(a x) on N(m, v) moves its mean to m + a v; smoothed h(x; σ) is known, and its gradient is the same a' x."""
    mean, std, slope, sigma = 0.3, 0.5, 1.7, 0.9
    data = Gaussian(mean, std)
    # E[exp(a x_0) | x] of a Gaussian: log h(x; σ) = a D(x; σ) + constant.
    guided = Tilted(data, lambda x, sigma: slope * data(x, sigma))
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    assert torch.allclose(guided(x, sigma), Gaussian(mean + slope * std**2, std)(x, sigma), rtol=0, atol=1e-12)


def test_a_scaled_posterior_at_level_zero_is_not_what_is_drawn():
    """Two points, weights 1/4 and 3/4 given y: scale 2 on the noisy posterior is not the squared one, smoothed."""
    points = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    given_y = torch.tensor([0.25, 0.75], dtype=torch.float64)
    prior = Empirical(points)
    told = GaussianMixture(points, 0.0, given_y)
    squared = GaussianMixture(points, 0.0, given_y**2)
    guided = Extrapolated(told, prior, 2.0)
    near, between = torch.tensor([[-1.0, 0.4], [0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(guided(near, 0.1), squared(near, 0.1), rtol=0, atol=1e-9)  # one point explains x
    # Between the points the squared weights 1 : 9 give 0.8; extrapolation gives 2 (3/4 - 1/4) - 0.
    assert torch.allclose(squared(between, 1.0), torch.full_like(between, 0.8))
    assert torch.allclose(guided(between, 1.0), torch.ones_like(between))


@pytest.mark.parametrize("make", [lambda i: Tilted(CLASSES, class_potential, 2.0, i)], ids=["tilted"])
def test_outside_the_interval_a_potential_is_silent(make):
    guided = make((0.1, 1.0))
    for sigma in (0.05, 2.0):
        assert torch.equal(guided(X, sigma, labels=LABELS), CLASSES(X, sigma, labels=LABELS))
    for sigma in (0.1, 0.5, 1.0):
        assert not torch.allclose(guided(X, sigma, labels=LABELS), CLASSES(X, sigma, labels=LABELS))


def test_outside_the_interval_the_strong_model_answers():
    guided = classifier_free(CLASSES, 3.0, interval=(0.1, 1.0))
    everywhere = classifier_free(CLASSES, 3.0)
    for sigma in (0.05, 2.0):
        assert torch.equal(guided(X, sigma, labels=LABELS), CLASSES(X, sigma, labels=LABELS))
    assert torch.equal(guided(X, 0.5, labels=LABELS), everywhere(X, 0.5, labels=LABELS))


def guided_ones():
    measured = Measured(CLASSES, lambda x: x[:, :1], torch.tensor([0.4]), 0.3, interval=(0.1, 1.0))
    return [
        pytest.param(classifier_free(CLASSES, 3.0, interval=(0.1, 1.0)), id="classifier-free"),
        pytest.param(Tilted(CLASSES, class_potential, 2.0, (0.1, 1.0)), id="tilted"),
        pytest.param(measured, id="measured"),
    ]


@pytest.mark.parametrize("guided", guided_ones())
def test_one_level_a_sample_is_the_same_as_one_by_one(guided):
    sigmas = torch.tensor([0.05, 0.1, 0.3, 0.9, 1.0, 5.0], dtype=torch.float64)
    together = guided(X, sigmas, labels=LABELS)
    alone = [guided(X[i : i + 1], float(s), labels=LABELS[i : i + 1]) for i, s in enumerate(sigmas)]
    assert torch.allclose(together, torch.cat(alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("guided", guided_ones())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shape_and_dtype_are_those_of_x(guided, dtype):
    answer = guided(X.to(dtype), 0.5, labels=LABELS)
    assert answer.shape == X.shape
    assert answer.dtype == dtype
    assert bool(answer.isfinite().all())


@pytest.mark.parametrize("guided", guided_ones())
def test_no_gradient_is_left_behind(guided):
    assert not guided(X, 0.5, labels=LABELS).requires_grad


def test_guidance_works_inside_every_kind_of_sampler():
    """Conditional sampling by Bayes' rule: the moments of the class, drawn from the unconditional denoiser."""
    guided = Tilted(Unconditional(CLASSES), class_potential)
    levels, labels = steps.edm(12), torch.ones(300, dtype=torch.int64)
    start = levels[0] * torch.randn(300, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for sampler in (samplers.heun, samplers.euler, samplers.multistep):
        steered = sampler(guided, start, levels, labels=labels).x
        told = sampler(CLASSES, start, levels, labels=labels).x
        assert torch.allclose(steered, told, rtol=0, atol=1e-6)


def test_forms_of_guidance_compose():
    """Tilted by half and by half again is tilted once."""
    half = Tilted(Unconditional(CLASSES), class_potential, 0.5)

    def keep(x, sigma, **cond):
        return half(x, sigma, **cond)

    twice = Tilted(keep, class_potential, 0.5)
    assert torch.allclose(twice(X, 0.6, labels=LABELS), CLASSES(X, 0.6, labels=LABELS), rtol=0, atol=1e-10)


def test_autoguidance_leaves_the_weak_model():
    weak, strong = Gaussian(0.0, 2.0), Gaussian(0.0, 1.0)
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    guided = Extrapolated(strong, weak, 2.0)
    assert torch.allclose(guided(x, 1.0), (2 / 2 - 4 / 5) * x)


@pytest.mark.parametrize("sigma", [0.05, 0.7, 6.0])
def test_a_measurement_of_a_gaussian_is_exact_with_the_spread_of_a_gaussian(sigma):
    """Data N(0, 1), y = x_0 + noise: with the spread the guided denoiser is that of the exact posterior."""
    std, y = 0.5, 0.8
    data = Gaussian(0.0, 1.0)
    posterior = Gaussian(y / (1 + std**2), std / math.sqrt(1 + std**2))
    seen = torch.tensor(y, dtype=torch.float64)
    guided = Measured(data, lambda x: x, seen, std, spread=lambda s: s / torch.sqrt(s**2 + 1))
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    assert torch.allclose(guided(x, sigma), posterior(x, sigma), rtol=0, atol=1e-12)


def test_without_the_spread_a_measurement_is_trusted_too_much():
    std, y, sigma = 0.5, 0.8, 0.7
    posterior = Gaussian(y / (1 + std**2), std / math.sqrt(1 + std**2))
    guided = Measured(Gaussian(0.0, 1.0), lambda x: x, torch.tensor(y), std)
    x = torch.tensor([[-1.0]], dtype=torch.float64)
    assert guided(x, sigma) > posterior(x, sigma) + 0.1


@given(st.floats(-5, 5), st.floats(1e-3, 100), st.sampled_from([(0.0, math.inf), (0.5, 2.0)]), st.booleans())
def test_legal_input_gives_finite_output(scale, sigma, interval, per_sample):
    level = torch.full((6,), sigma, dtype=torch.float64) if per_sample else sigma
    for guided in (
        classifier_free(CLASSES, scale, interval=interval),
        Tilted(CLASSES, class_potential, scale, interval),
        Measured(CLASSES, lambda x: x.sum(1), torch.zeros(6), 0.5, scale=scale, interval=interval),
    ):
        answer = guided(X, level, labels=LABELS)
        assert answer.shape == X.shape
        assert bool(answer.isfinite().all())


@pytest.mark.parametrize(
    ("scale", "interval", "named"),
    [
        (math.nan, (0.0, 1.0), "scale"),
        (math.inf, (0.0, 1.0), "scale"),
        (1.0, (2.0, 1.0), "interval"),
        (1.0, (-1.0, 1.0), "interval"),
        (1.0, (0.0, math.nan), "interval"),
    ],
    ids=["nan", "inf", "turned", "negative", "nan-end"],
)
def test_scales_and_intervals_that_mean_nothing_are_refused(scale, interval, named):
    for make in (
        lambda: classifier_free(CLASSES, scale, interval=interval),
        lambda: Tilted(CLASSES, class_potential, scale, interval),
        lambda: Measured(CLASSES, lambda x: x, X, 1.0, scale=scale, interval=interval),
    ):
        with pytest.raises(ValueError, match=f"{named} = "):
            make()


@pytest.mark.parametrize("std", [0.0, -1.0, math.inf, math.nan])
def test_a_measurement_without_noise_is_refused(std):
    with pytest.raises(ValueError, match="std = "):
        Measured(CLASSES, lambda x: x, X, std)


def test_a_potential_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="one a sample"):
        Tilted(CLASSES, lambda x, sigma: x)(X, 1.0)


@pytest.fixture(scope="module")
def classifier():
    config = training.Config(images=4096, warmup=1000, lr=2e-3, sigmas=losses.LogNormal(-0.6, 1.4), seed=1)
    return training.fit_classifier(data.digits().train, config=config, progress=False)


def test_a_classifier_tells_noised_digits_apart_and_less_so_the_noisier(classifier):
    held_out = data.digits().held_out
    normal = torch.randn(held_out.x.shape, generator=torch.Generator().manual_seed(0))
    right = [(classifier(held_out.x + s * normal, s).argmax(1) == held_out.labels).float().mean() for s in (0.1, 5.0)]
    assert right[0] > 0.85
    assert 0.08 < right[1] < 0.4


def test_a_classifier_s_log_probabilities_are_normalised(classifier):
    x = torch.randn(1, 1, 8, 8).expand(10, 1, 8, 8)
    told = classifier.log_prob(x, 0.5, labels=torch.arange(10))
    assert float(told.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_a_classifier_guides_towards_the_class_that_it_is_asked_for(classifier):
    x, labels = 2 * torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10
    guided = Tilted(lambda x, sigma, **_: x, classifier.log_prob)
    assert bool(
        (
            classifier.log_prob(guided(x, 0.2, labels=labels), 0.2, labels=labels)
            > classifier.log_prob(x, 0.2, labels=labels)
        ).all()
    )


def test_a_classifier_takes_one_level_a_sample(classifier):
    x, sigmas = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 5.0])
    alone = torch.cat([classifier(x[i : i + 1], float(s)) for i, s in enumerate(sigmas)])
    assert torch.allclose(classifier(x, sigmas), alone, atol=1e-5)


def test_the_same_seed_trains_the_same_classifier():
    few = training.Config(images=128, seed=3)
    one, same = (training.fit_classifier(data.digits().train, config=few, progress=False) for _ in range(2))
    other = training.fit_classifier(data.digits().train, config=training.Config(images=128, seed=4), progress=False)
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(one(x, 1.0), same(x, 1.0))
    assert not torch.equal(one(x, 1.0), other(x, 1.0))


def test_a_classifier_of_points_is_refused():
    with pytest.raises(ValueError, match="a classifier needs images"):
        training.fit_classifier(data.moons(10))
