"""The table's rows by name."""

import dataclasses

import pytest
import torch
from torch import nn

from edmnotes import losses, preconditioning, presets, samplers, schedules, steps
from edmnotes.exact import Gaussian

each_row = pytest.mark.parametrize("name", presets.PRESETS)


def test_the_rows_are_those_of_the_design():
    assert set(presets.PRESETS) == {"vp", "ve", "iddpm", "edm", "ddpm", "flow"}


def test_edm_is_the_paper_s_own_row():
    edm = presets.load("edm")
    assert edm.preconditioning(0.7) == preconditioning.EDM(0.7)
    assert edm.sigmas == losses.LogNormal(-1.2, 1.2)
    assert edm.schedule == schedules.EDM()
    assert torch.equal(edm.steps(18), steps.edm(18, 0.002, 80.0, 7.0))


@each_row
@pytest.mark.parametrize("n", [1, 2, 18])
def test_each_row_samples_on_its_own_steps_and_schedule(name, n):
    """Euler on the exact Gaussian from the row's own first level; with 18 levels the std is near enough."""
    row = presets.load(name)
    levels = row.steps(n)
    t = row.schedule.sigma_inv(levels[0])
    x = (row.schedule.scale(t) * levels[0]).reshape(1)
    out = samplers.euler(Gaussian(0.0, 0.5), x, levels, schedule=row.schedule).x
    assert bool(out.isfinite().all())
    assert n < 18 or 0.2 < float(out) < 1.6


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
    with pytest.raises(ValueError, match="unknown preset 'ddmp'; there are vp, ve, iddpm, edm, ddpm, flow"):
        presets.load("ddmp")
