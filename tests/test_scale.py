"""The one switch."""

import pytest
import torch

from edmnotes import scale


@pytest.mark.parametrize(("word", "value"), [("smoke", 1), ("laptop", 2), ("gpu", 3)])
def test_the_variable_picks_the_value(monkeypatch, word, value):
    monkeypatch.setenv("EDMNOTES_SCALE", word)
    found = scale.current()
    assert found.name == word
    assert found.pick(smoke=1, laptop=2, gpu=3) == value
    assert found.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_default_is_laptop(monkeypatch):
    monkeypatch.delenv("EDMNOTES_SCALE", raising=False)
    assert scale.current().name == "laptop"


def test_mixed_precision_needs_the_gpu_scale_and_a_gpu():
    assert scale.Scale("gpu", torch.device("cuda")).mixed_precision
    assert not scale.Scale("gpu", torch.device("cpu")).mixed_precision
    assert not scale.Scale("laptop", torch.device("cuda")).mixed_precision


def test_another_word_is_refused(monkeypatch):
    monkeypatch.setenv("EDMNOTES_SCALE", "huge")
    with pytest.raises(ValueError, match="'huge'; it must be one of smoke, laptop, gpu"):
        scale.current()
