"""The extractor of published numbers, with a stand-in for the package: neither it nor its weights are here."""

import sys
from types import ModuleType

import pytest
import torch

from edmnotes import metrics


class StandIn(torch.nn.Module):
    """Takes what torch-fidelity's network takes; its features are the first pixel's channels, over and over."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        self.weights = torch.load(feature_extractor_weights_path, weights_only=True)
        assert features_list == ["2048", "logits_unbiased"]

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        return x[:, :, 0, 0].float().repeat(1, 683)[:, :2048], self.weights * x[:, :2, 0, 0].float()


@pytest.fixture
def inception(tmp_path, monkeypatch):
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = StandIn
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    torch.save(torch.tensor(3), tmp_path / "weights.pth")
    return metrics.Inception(tmp_path / "weights.pth")


def test_images_become_bytes_and_grey_becomes_colour(inception):
    x = torch.tensor([-1.0, 0.0, 1.0, 7.0]).reshape(4, 1, 1, 1).expand(4, 1, 2, 2)
    assert inception.features(x).tolist() == [[level] * 2048 for level in (0, 128, 255, 255)]
    assert inception(x).tolist() == [[3 * level] * 2 for level in (0, 128, 255, 255)]
    assert inception.features(torch.zeros(5, 3, 4, 4)).shape == (5, 2048)


def test_images_of_another_shape_are_refused(inception):
    with pytest.raises(ValueError, match=r"x has shape \(5, 2, 4, 4\)"):
        inception(torch.zeros(5, 2, 4, 4))


def test_weights_that_are_not_there_are_refused_and_never_fetched(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"never downloaded: fetch weights-inception.*edmnotes\.judging\.load"):
        metrics.Inception(tmp_path / "weights.pth")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    (tmp_path / "weights.pth").touch()
    with pytest.raises(ImportError, match=r"needs the package torch-fidelity \(pip install 'edmnotes\[inception\]'\)"):
        metrics.Inception(tmp_path / "weights.pth")
