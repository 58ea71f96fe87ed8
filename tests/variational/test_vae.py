"""Autoencoders that are linear, where log p is known; what they learn of digits is seen in the chapter."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from edmnotes.exact import Gaussian
from edmnotes.noise import PerSample
from edmnotes.variational import VAE, Density, GreyLevels, Output, elbo, fit_vae, iwae, vae, vlb

DOUBLE = torch.float64


def seeded(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


class Linear(nn.Module):
    """N(A z + b, std²)."""

    def __init__(self, matrix, offset, std):
        super().__init__()
        self.matrix, self.offset = nn.Parameter(matrix), nn.Parameter(offset)
        self.std = nn.Parameter(torch.as_tensor(std, dtype=DOUBLE))

    def forward(self, z):
        mean = z @ self.matrix.T + self.offset
        return mean, self.std.expand_as(mean)


FACTORS = torch.tensor([[0.8], [-0.3], [0.5]], dtype=DOUBLE)
OFFSET = torch.tensor([0.1, 0.0, -0.2], dtype=DOUBLE)
NOISE = 0.4
MARGINAL = MultivariateNormal(OFFSET, FACTORS @ FACTORS.T + NOISE**2 * torch.eye(3, dtype=DOUBLE))
POINTS = torch.tensor([[0.5, 0.2, -1.0], [-1.0, 0.3, 0.2]], dtype=DOUBLE)


def probabilistic_pca(wrong=1.0):
    """One latent; the encoder is the posterior, its std wrong by a factor."""
    precision = 1 + float((FACTORS.T @ FACTORS).squeeze()) / NOISE**2
    back = FACTORS.T / NOISE**2 / precision
    encoder = Linear(back, -(back @ OFFSET), wrong * precision**-0.5)
    return VAE((3,), [encoder], [Linear(FACTORS, OFFSET, NOISE)], decoder=Density())


def chain(wrong=1.0):
    """z_2 → z_1 → x on the line, as z_1 = 0.6 z_2 + 0.8 ε, x = 1.5 z_1 + 0.7 ε; the encoders are the posteriors."""

    def line(a, std):
        return Linear(torch.tensor([[a]], dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE), std)

    total = 1.5**2 + 0.7**2  # z_1 has variance 1
    up = [line(1.5 / total, wrong * 0.7 / total**0.5), line(0.6, wrong * 0.8)]
    return VAE((1,), up, [line(1.5, 0.7), line(0.6, 0.8)], decoder=Density())


CASES = [
    (probabilistic_pca, POINTS, -MARGINAL.log_prob(POINTS)),
    (
        chain,
        torch.tensor([[0.4], [-2.0]], dtype=DOUBLE),
        -Gaussian(0.0, (1.5**2 + 0.7**2) ** 0.5).log_prob(torch.tensor([[0.4], [-2.0]], dtype=DOUBLE), 0.0),
    ),
]
NAMES = ["pca", "chain"]


@pytest.mark.parametrize(("make", "x", "truth"), CASES, ids=NAMES)
def test_with_the_posterior_as_encoder_the_bound_is_log_p(make, x, truth):
    """Each importance weight is p(x) itself, whatever was drawn; the terms agree in the mean."""
    torch.testing.assert_close(iwae(make(), x, 1, noise=seeded()), truth)
    n = 20_000
    found = elbo(make(), x.repeat_interleave(n, 0), noise=seeded()).total.reshape(len(x), n)
    assert bool(((found.mean(1) - truth).abs() < 4 * found.std(1) / math.sqrt(n)).all())


@pytest.mark.parametrize(("make", "x", "truth"), CASES, ids=NAMES)
def test_the_gap_of_the_bound_is_the_kl_of_the_encoder(make, x, truth):
    """With every std wrong by a factor f the gap is L (f² − 1 − ln f²)/2 a latent coordinate, and no more in a chain
    whose next encoder reads the drawn z: its mean is exact."""
    n, factor = 20_000, 1.3
    model = make(factor)
    found = elbo(model, x.repeat_interleave(n, 0), noise=seeded()).total.reshape(len(x), n)
    gap = len(model.encoders) * (factor**2 - 1 - math.log(factor**2)) / 2
    assert bool(((found.mean(1) - truth - gap).abs() < 4.5 * found.std(1) / math.sqrt(n)).all())


@pytest.mark.parametrize(("make", "x", "truth"), CASES, ids=NAMES)
def test_the_importance_weighted_bound_falls_to_log_p(make, x, truth):
    """Encoders half as wide as they should be: the bound is far, then nearer with every k."""
    n, model = 4000, make(0.6)
    many = x[:1].repeat_interleave(n, 0)
    at_one = elbo(model, many, noise=seeded()).total.detach()
    found = [iwae(model, many, k, noise=seeded(k)) for k in (1, 4, 16, 64)]
    means = [float(values.mean()) for values in found]
    error = [float(values.std()) / math.sqrt(n) for values in found]
    assert means[0] == pytest.approx(float(at_one.mean()), abs=4 * math.hypot(error[0], float(at_one.std()) / n**0.5))
    for k in range(3):
        assert means[k] > means[k + 1] + 3 * math.hypot(error[k], error[k + 1])
    assert means[-1] > float(truth[0]) - 4 * error[-1]
    assert means[-1] < float(truth[0]) + 0.25 * (means[0] - float(truth[0])) + 4 * error[-1]


def test_terms_sum_and_the_top_one_is_closed():
    model = chain(1.3)
    x = torch.tensor([[0.4], [-2.0]], dtype=DOUBLE)
    found = elbo(model, x, noise=seeded())
    assert found.kl.shape == (2, 2)
    torch.testing.assert_close(found.total, found.reconstruction + found.kl[0] + found.kl[1])
    torch.testing.assert_close(found.bits.total, found.total / math.log(2))
    mean, std = model.encoders[1](model.encode(x)[0] + model.encode(x)[1] * seeded()(x))
    closed = (mean**2 + std**2 - 1 - torch.log(std**2)) / 2
    torch.testing.assert_close(found.kl[1], closed.squeeze(1))


def test_gradients_reach_mean_and_std_through_the_noise():
    """d/d std of E (mean + std ε)² is 2 std: the noise is multiplied by std, not by its square."""
    encoder = Linear(torch.zeros(1, 1, dtype=DOUBLE), torch.tensor([0.3], dtype=DOUBLE), 0.5)
    plain = Linear(torch.ones(1, 1, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE), 1.0)
    model = VAE((1,), [encoder], [plain], decoder=Density())
    x = torch.zeros(2, 1, dtype=DOUBLE)
    signs = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE)
    elbo(model, x, noise=lambda _: signs).reconstruction.mean().backward()
    assert float(encoder.std.grad) == pytest.approx(0.5)
    assert float(encoder.offset.grad) == pytest.approx(0.3)


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_a_diffusion_model_of_one_step_is_an_autoencoder(sigma):
    """T = 1: the encoder adds noise, the decoder denoises; the latent is the state in chain coordinates."""
    scale = (1 + sigma**2) ** -0.5
    data = Gaussian(0.2, 0.5)

    class Noised(nn.Module):
        def forward(self, x):
            return scale * x, torch.full_like(x, scale * sigma)

    class Denoised(nn.Module):
        def forward(self, z):
            return data(z / scale, sigma), torch.tensor(0.3, dtype=DOUBLE)

    model = VAE((1, 2, 2), [Noised()], [Denoised()])
    x = GreyLevels().sample(PerSample(range(5)).normal((1, 2, 2)), 0.1, noise=torch.zeros_like)
    noise = PerSample(range(5)).normal((4,))
    first = elbo(model, x, noise=lambda _: noise)
    levels = torch.tensor([sigma, 0.0], dtype=DOUBLE)
    second = vlb(data, x, levels, std=0.3, noise=lambda _: noise.reshape(5, 1, 2, 2))
    torch.testing.assert_close(first.total, second.total)
    torch.testing.assert_close(first.kl[0], second.prior)


# Networks.

# Pictures that one number tells: a bright half of a height of its own.
GREY = -torch.ones(40, 1, 4, 4)
GREY[:, :, :, 2:] = GreyLevels().sample(PerSample(range(40)).normal((1, 1, 1)), 0.1, noise=torch.zeros_like).float()


def made(latents=(3,), **options):
    torch.manual_seed(0)
    return vae((1, 4, 4), latents, width=16, **options)


@pytest.mark.parametrize("latents", [(3,), (4, 2), (4, 3, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shapes_and_dtypes(latents, dtype):
    model, x = made(latents).to(dtype), GREY[:5].to(dtype)
    found = elbo(model, x)
    assert found.kl.shape == (len(latents), 5)
    assert found.total.shape == iwae(model, x, 2).shape == (5,)
    assert found.dim == 16
    assert model.encode(x)[0].shape == (5, latents[0])
    assert model.reconstruct(x).shape == x.shape
    drawn = model.sample(6, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (6, 1, 4, 4)
    assert {found.total.dtype, drawn.dtype, model.reconstruct(x).dtype} == {dtype}
    assert torch.equal(drawn, model.sample(6, generator=torch.Generator().manual_seed(0)))
    assert float(drawn.abs().max()) <= 1


def test_pictures_are_expected_grey_levels_and_no_means_beyond_them():
    """The end bins are open: a mean far below the darkest level is as good as any, and no grey level."""
    model = made()
    with torch.no_grad():
        model.decoders[0].mean.bias.copy_(torch.linspace(-9, 9, 16))
    drawn = model.sample(5, generator=torch.Generator().manual_seed(0)).flatten(1)
    assert float(drawn.abs().max()) <= 1
    torch.testing.assert_close(drawn[:, [0, 15]], torch.tensor([-1.0, 1.0]).expand(5, 2))
    torch.testing.assert_close(model.reconstruct(GREY).flatten(1)[:, 0], torch.full((40,), -1.0))


@pytest.mark.parametrize("latents", [(3,), (4, 2)], ids=str)
def test_training_lowers_the_bound_and_repeats(latents):
    first, again = made(latents), made(latents)
    before = float(elbo(first, GREY, noise=seeded()).total.mean().detach())
    losses = fit_vae(first, GREY, steps=60, batch=16, rate=3e-3)
    assert torch.equal(losses, fit_vae(again, GREY, steps=60, batch=16, rate=3e-3))
    assert not torch.equal(losses, fit_vae(made(latents), GREY, steps=60, batch=16, rate=3e-3, seed=1))
    assert losses.shape == (60,)
    assert float(elbo(first, GREY, noise=seeded()).total.mean().detach()) < 0.8 * before


def test_training_finds_the_std_of_noise_unless_it_is_fixed():
    """Data that are noise of std 0.5 about a mean: there is nothing to encode."""
    x = 0.3 + 0.5 * PerSample(range(2000)).normal((4,)).float()
    torch.manual_seed(0)
    free = vae((4,), (1,), width=8, decoder=Density())
    fit_vae(free, x, steps=150, batch=100, rate=2e-2)
    assert float(free.decoders[0].log_std.detach().exp()) == pytest.approx(0.5, rel=0.03)
    fixed = vae((4,), (1,), width=8, std=0.9, decoder=Density())
    fit_vae(fixed, x, steps=3, batch=200)
    assert float(fixed.decoders[0].log_std.exp()) == pytest.approx(0.9)


def test_training_reports_only_when_asked(capsys):
    fit_vae(made(), GREY, steps=2)
    assert capsys.readouterr().err == ""
    fit_vae(made(), GREY, steps=2, show=True)
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize("latents", [(), (0,), (4, -1)], ids=str)
def test_latents_without_coordinates_are_refused(latents):
    with pytest.raises(ValueError, match="latents"):
        vae((1, 4, 4), latents)


def test_impossible_arguments_are_refused():
    model = made()
    with pytest.raises(ValueError, match="std"):
        Output(2, 4, 8, std=0.0)
    with pytest.raises(ValueError, match="encoders"):
        VAE((3,), [], [])
    with pytest.raises(ValueError, match="k = 0"):
        iwae(model, GREY, 0)
    with pytest.raises(ValueError, match="n = 0"):
        model.sample(0)
    with pytest.raises(ValueError, match="samples of shape"):
        elbo(model, GREY[..., :2])
    with pytest.raises(ValueError, match="grey levels"):
        elbo(model, GREY + 0.01)
    with pytest.raises(ValueError, match="grey levels"):
        fit_vae(model, GREY + 0.01, steps=1)
    with pytest.raises(ValueError, match="steps = 0"):
        fit_vae(model, GREY, steps=0)
