"""The churn's own contract."""

import math

import pytest

from edmnotes.samplers import Churn


def test_gamma_is_capped_and_windowed():
    churn = Churn(amount=40.0, sigma_min=0.05, sigma_max=50.0)
    assert churn.gamma(1.0, 256) == 40 / 256
    assert churn.gamma(1.0, 18) == math.sqrt(2) - 1
    assert churn.gamma(0.01, 256) == 0
    assert churn.gamma(60.0, 256) == 0


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"amount": -1.0}, "amount"),
        ({"amount": math.nan}, "amount"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min"),
        ({"sigma_min": -1.0}, "sigma_min"),
        ({"noise_scale": -1.0}, "noise_scale"),
    ],
)
def test_impossible_churn_is_refused(arguments, name):
    with pytest.raises(ValueError, match=name):
        Churn(**arguments)
