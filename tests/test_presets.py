"""The table's rows by name."""

import dataclasses

import pytest
import torch

from edmnotes import losses, preconditioning, presets, schedules, steps


def test_edm_is_the_paper_s_own_row():
    edm = presets.load("edm")
    assert edm.preconditioning(0.7) == preconditioning.EDM(0.7)
    assert edm.sigmas == losses.LogNormal(-1.2, 1.2)
    assert edm.schedule == schedules.EDM()
    assert torch.equal(edm.steps(18), steps.edm(18, 0.002, 80.0, 7.0))


def test_a_column_can_be_swapped():
    row = dataclasses.replace(presets.load("edm"), steps=steps.ve)
    assert torch.equal(row.steps(5), steps.ve(5))
    assert row.schedule == presets.load("edm").schedule


def test_an_unknown_preset_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="unknown preset 'ddmp'; there are edm"):
        presets.load("ddmp")
