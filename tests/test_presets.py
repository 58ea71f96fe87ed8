"""The table's rows by name."""

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from edmnotes import losses, preconditioning, presets, schedules, steps
from edmnotes.exact import Gaussian

each_row = pytest.mark.parametrize("name", presets.PRESETS)


def test_the_rows_are_those_of_the_design():
    assert set(presets.PRESETS) == {"vp", "ve", "iddpm", "edm", "ddpm", "ddim", "smld", "vdm", "flow"}


def test_edm_is_the_paper_s_own_row():
    edm = presets.load("edm")
    assert edm.preconditioning(0.7) == preconditioning.EDM(0.7)
    assert edm.sigmas == losses.LogNormal(-1.2, 1.2)
    assert edm.schedule == schedules.EDM()
    assert torch.equal(edm.steps(18), steps.edm(18, 0.002, 80.0, 7.0))


@each_row
@pytest.mark.parametrize("n", [1, 2])
def test_each_row_samples_in_one_step_and_in_two(name, n):
    drawn = presets.load(name).sample(Gaussian(0.0, 0.5), torch.ones(3, 2), n)
    assert drawn.x.shape == (3, 2)
    assert bool(drawn.x.isfinite().all())


@each_row
def test_each_row_s_own_sampler_draws_the_data(name):
    """Mean and std of a Gaussian by 400 levels; 4000 samples have a standard error of 1.1 % in the std."""
    generator = torch.Generator().manual_seed(0)
    draws = partial(torch.randn, 4000, generator=generator, dtype=torch.float64)
    x = presets.load(name).sample(Gaussian(0.3, 0.5), draws(), 400, noise=lambda like: draws()).x
    assert float(x.mean()) == pytest.approx(0.3, abs=0.03)
    assert float(x.std()) == pytest.approx(0.5, abs=0.03)


NFE = {"edm": 35, "smld": 91}
"""Calls by 18 levels where they are not 18: Heun's, and five Langevin steps a level and a last answer."""


@each_row
def test_each_row_s_cost(name):
    assert presets.load(name).sample(Gaussian(0.0, 0.5), torch.ones(1), 18).nfe == NFE.get(name, 18)


def test_ddpm_and_ddim_differ_in_the_sampler_alone():
    ddpm, ddim = presets.load("ddpm"), presets.load("ddim")
    assert dataclasses.replace(ddpm, sampler=ddim.sampler) == ddim
    x = torch.ones(1, dtype=torch.float64)
    assert torch.equal(ddim.sample(Gaussian(0.0, 0.5), x, 9).x, ddim.sample(Gaussian(0.0, 0.5), x, 9).x)
    assert not torch.equal(ddpm.sample(Gaussian(0.0, 0.5), x, 9).x, ddpm.sample(Gaussian(0.0, 0.5), x, 9).x)


@each_row
def test_each_row_trains_on_levels_that_its_network_understands(name):
    """What c_noise tells is finite and inside the schedule's domain at every level drawn, and the loss is finite."""
    row = presets.load(name)
    sigma = row.sigmas.sample(2000, generator=torch.Generator().manual_seed(0))
    c = row.preconditioning(0.5)
    for coefficient in (c.c_skip, c.c_out, c.c_in, c.c_noise, c.weight):
        assert bool(coefficient(sigma).isfinite().all())
    assert float(c.c_noise(sigma).std()) > 0

    class Zero(nn.Module):
        def forward(self, x, c_noise):
            return torch.zeros_like(x)

    x0 = 0.5 * torch.randn(2000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = losses.denoising(preconditioning.Denoiser(Zero(), c), x0, sigma, torch.randn_like(x0))
    assert bool(loss.isfinite().all())


def test_edms_row_has_unit_input_and_target_and_no_other_has():
    """Variance of what the network sees and of what it should say, over the row's own levels, for data of std 0.5."""
    measured = {}
    for name in presets.PRESETS:
        row, generator = presets.load(name), torch.Generator().manual_seed(0)
        c, sigma = row.preconditioning(0.5), row.sigmas.sample(200_000, generator=generator)
        x0 = 0.5 * torch.randn(len(sigma), generator=generator, dtype=torch.float64)
        x = x0 + sigma * torch.randn(len(sigma), generator=generator, dtype=torch.float64)
        measured[name] = [float(v.var()) for v in (c.c_in(sigma) * x, (x0 - c.c_skip(sigma) * x) / c.c_out(sigma))]
    # 2e5 numbers: standard error 0.0032.
    assert measured.pop("edm") == pytest.approx([1, 1], abs=0.013)
    for name, pair in measured.items():
        assert pair != pytest.approx([1, 1], abs=0.05), name


def test_a_column_can_be_swapped():
    row = dataclasses.replace(presets.load("edm"), steps=steps.ve)
    assert torch.equal(row.steps(5), steps.ve(5))
    assert row.schedule == presets.load("edm").schedule


def test_an_unknown_preset_is_answered_with_those_there_are():
    with pytest.raises(
        ValueError, match="unknown preset 'ddmp'; there are vp, ve, iddpm, edm, ddpm, ddim, smld, vdm, flow"
    ):
        presets.load("ddmp")
