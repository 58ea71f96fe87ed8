"""The mistakes that the chapter's formulas are most often written with: each must be refused."""

import math
from dataclasses import replace

import pytest
from sympy import exp, log, sqrt

from edmnotes.derivations.core import VerificationError, registry
from edmnotes.derivations.inverse_problems import A, C, D, level, m, noise, scale, top, v, x, y

rate = level / (v + level**2) + scale * level * v**2 / (noise**2 * (v + level**2) ** 2)


def test_the_scale_for_the_width_gives_the_width():
    numbers = {v: 1.3, noise: 0.4}
    entries = registry().entries
    best = entries["dps-scale"].step.rhs.subs(numbers)
    narrow = float(entries["dps-width"].step.rhs.subs({**numbers, scale: best}))
    assert narrow == pytest.approx(math.sqrt(1.3 * 0.16 / (1.3 + 0.16)))


ONE_MISTAKE = [
    ("measured-mean", D + A * C * (y - A * D) / noise**2),  # the mean's own chance forgotten
    ("measured-mean", D + C * (y - A * D) / (noise**2 + A**2 * C)),
    ("measured-covariance", noise**2 / (noise**2 + A**2 * C)),
    ("measured-covariance", C),
    ("component-evidence", -((y - A * m) ** 2) / (2 * noise**2)),  # the width of the component forgotten
    ("component-evidence", -((y - A * m) ** 2) / (2 * (noise**2 + A * v))),
    ("dps-denoiser", D + A * C * (y - A * D) / (noise**2 + A**2 * C)),  # what it should have been
    ("dps-denoiser", D + A * level**2 * (y - A * D) / noise**2),  # the slope of the denoiser forgotten
    ("dps-denoiser", D - A * C * (y - A * D) / noise**2),
    ("dps-overstep", 1 + A * C / noise**2),
    ("dps-slope", rate * x + scale * level * v * y / (noise**2 * (v + level**2))),
    ("dps-flow", v / (v + top**2) * exp(-scale * v * top**2 / (noise**2 * (v + top**2)))),  # the root left out
    ("dps-width", sqrt(v * noise**2 / (v + noise**2))),  # the exact posterior's
    ("dps-width", sqrt(v) * exp(-scale * v / noise**2)),
    ("measured-width", noise),  # the prior forgotten
    ("dps-scale", log(1 + v / noise**2)),
]


@pytest.mark.parametrize(
    ("label", "wrong"), ONE_MISTAKE, ids=[f"{label}-{i}" for i, (label, _) in enumerate(ONE_MISTAKE)]
)
def test_a_common_mistake_is_refused(label, wrong):
    entry = registry().entries[label].step
    with pytest.raises(VerificationError, match=label):
        replace(entry, rhs=wrong, torch=()).verify()
