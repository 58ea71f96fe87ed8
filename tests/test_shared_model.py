"""The book's shared digits model: whole, small, as good as its provenance says, and remade only inside its bounds."""

import json
from pathlib import Path

import pytest
import shared_model as tool
import torch

from edmnotes import data, training
from edmnotes.training import checkpoint
from edmnotes.training.fit import digest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def provenance():
    return json.loads((checkpoint.DIGITS / "provenance.json").read_text())


def test_it_is_whole_and_at_most_two_megabytes():
    index, tensors = checkpoint.read(checkpoint.DIGITS)  # refuses what is not whole
    assert index["network"]["num_classes"] == 10
    assert {name.split(".")[0] for name in tensors} == {"ema"}
    assert sum(path.stat().st_size for path in checkpoint.DIGITS.iterdir()) <= 2_000_000


def test_it_was_trained_on_the_training_split_as_it_is_now(provenance):
    """The digest of the data, the width of the noise and the length are those of the split and the tool."""
    index = training.about(checkpoint.DIGITS)
    train = data.digits().train
    assert index["data"] == digest(train)
    assert index["preconditioning"] == {
        "name": "preconditioning.EDM",
        "sigma_data": pytest.approx(data.sigma_data(train.x)),
    }
    assert index["config"]["images"] == provenance["images"]
    assert index["config"]["seed"] == provenance["seed"]


def test_provenance_says_how_it_was_made(provenance):
    assert (ROOT / provenance["command"].split()[1]).is_file()
    assert provenance["bounds"] == {name: list(pair) for name, pair in tool.BOUNDS.items()}
    assert provenance["images"] == tool.IMAGES
    assert {"machine", "device", "versions", "scale", "report"} <= provenance.keys()
    assert set(provenance["code"]) == set(tool.MADE_BY)


def test_it_is_as_good_as_its_provenance_says(provenance):
    """Judged anew, on this machine: inside the bounds, and near the numbers that were written down."""
    measured = tool.measures(tool.judged(checkpoint.DIGITS))
    assert measured == pytest.approx(provenance["measured"], abs=0.02)
    for name, value in measured.items():
        low, high = tool.BOUNDS[name]
        assert low <= value <= high, name


def test_it_answers_with_and_without_labels():
    model = training.digits_model()
    x = 0.5 * torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not model.training
    with torch.no_grad():
        assert not torch.allclose(model(x, 0.5, labels=torch.arange(10)), model(x, 0.5), atol=0.05)


def test_a_model_outside_the_bounds_is_not_written(tmp_path):
    with pytest.raises(RuntimeError, match=r"accuracy is 0\.\d+, outside"):
        tool.make(tmp_path / "run", tmp_path / "out", images=512)
    assert not (tmp_path / "out").exists()
