"""All targets say the same thing: conversions agree with their definitions, with each other, and with c_skip, c_out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edmnotes import preconditioning
from edmnotes.exact import GaussianMixture
from edmnotes.targets import X0, Epsilon, Score, V, Velocity, convert

TARGETS = [X0(), Epsilon(), Score(), V(), Velocity()]
MIXTURE = GaussianMixture([[-1.0, 0.0], [1.0, 1.0]], 0.4)


def points(count=6):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_each_target_is_its_definition():
    """On one draw x = x_0 + σ ε, a denoiser that knew x_0 would make each target what its name says."""
    x0, eps = points(), points().flip(0)
    sigma = torch.logspace(-1, 1, 6, dtype=torch.float64)
    s = sigma[:, None]
    x = x0 + s * eps
    alpha, std = 1 / torch.sqrt(1 + s**2), s / torch.sqrt(1 + s**2)
    expected = {X0(): x0, Epsilon(): eps, Score(): -eps / s, V(): alpha * eps - std * x0, Velocity(): eps - x0}
    for target, value in expected.items():
        torch.testing.assert_close(target.value(x0, x, sigma), value)
        torch.testing.assert_close(target.denoised(value, x, sigma), x0)


def test_the_score_target_of_an_exact_denoiser_is_the_score():
    torch.testing.assert_close(Score().value(MIXTURE(points(), 0.7), points(), 0.7), MIXTURE.score(points(), 0.7))


@pytest.mark.parametrize("source", TARGETS, ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
@given(sigma=st.floats(1e-2, 1e2), shape=st.sampled_from([(3,), (3, 2), (3, 1, 2, 2)]))
def test_there_and_back(source, target, sigma, shape):
    generator = torch.Generator().manual_seed(1)
    x, value = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    there = convert(value, source, target, x, sigma)
    assert (there.shape, there.dtype) == (x.shape, x.dtype)
    assert bool(there.isfinite().all())
    torch.testing.assert_close(convert(there, target, source, x, sigma), value, rtol=1e-6, atol=1e-6)


ROWS = {
    Epsilon(): preconditioning.VP(),
    Velocity(): preconditioning.Flow(),
}


@pytest.mark.parametrize("target", ROWS, ids=str)
def test_a_target_is_a_choice_of_c_skip_and_c_out(target):
    sigma, x, raw = torch.tensor(0.7, dtype=torch.float64), points(), points().flip(0)
    c = ROWS[target]
    torch.testing.assert_close(target.denoised(raw, x, sigma), c.c_skip(sigma) * x + c.c_out(sigma) * raw)


def test_v_is_edms_row_at_sigma_data_one_up_to_sign():
    sigma, x, raw = torch.tensor(0.7, dtype=torch.float64), points(), points().flip(0)
    c = preconditioning.EDM(1.0)
    torch.testing.assert_close(V().denoised(-raw, x, sigma), c.c_skip(sigma) * x + c.c_out(sigma) * raw)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"value has shape \(2,\)"):
        convert(torch.zeros(2), X0(), Score(), torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="sigma has shape"):
        convert(torch.zeros(3), X0(), Score(), torch.zeros(3), torch.ones(2))
