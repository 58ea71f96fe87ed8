"""Networks: shapes, the null token, and that a configuration rebuilds its network."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edmnotes import networks
from edmnotes.networks import NULL

CONDITIONAL = {
    "mlp": (lambda: networks.MLP(3, width=16, depth=2, num_classes=4), (3,)),
    "unet": (lambda: networks.UNet(2, (8, 16), num_classes=4), (2, 8, 8)),
    "unet three levels": (lambda: networks.UNet(1, (8, 8, 16), num_classes=4), (1, 16, 12)),
}
ALL = {
    **{name: make for name, (make, _) in CONDITIONAL.items()},
    "judge": networks.Judge,
    "guide": lambda: networks.Guide(width=16),
}


def awake(network):
    """Random values in every parameter: a zero-initialised layer hides what lies under it."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=g))
    return network.eval()


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_a_configuration_survives_json_and_builds_a_twin(make):
    network = make()
    twin = networks.build(json.loads(json.dumps(network.config)))
    assert type(twin) is type(network)
    assert twin.config == network.config
    twin.load_state_dict(network.state_dict())  # strict: the same names and shapes


@pytest.mark.parametrize(
    ("network", "arguments"),
    [
        (networks.MLP, {"dim": 3, "width": 24, "depth": 1, "num_classes": 5}),
        (networks.UNet, {"channels": 2, "widths": [8, 16], "num_classes": 5, "dropout": 0.25}),
        (networks.Judge, {"channels": 2, "num_classes": 5, "dropout": 0.25}),
        (networks.Guide, {"channels": 2, "width": 24, "num_classes": 5}),
    ],
)
def test_the_configuration_is_the_name_and_the_arguments(network, arguments):
    assert network(**arguments).config == {"name": network.__name__, **arguments}


@pytest.mark.parametrize(("make", "shape"), CONDITIONAL.values(), ids=CONDITIONAL)
def test_an_untrained_network_returns_zeros_of_its_inputs_shape(make, shape):
    x = torch.randn(5, *shape)
    assert torch.equal(make()(x, torch.randn(5), torch.arange(5) % 4), torch.zeros_like(x))


@pytest.mark.parametrize(("make", "shape"), CONDITIONAL.values(), ids=CONDITIONAL)
def test_no_labels_and_the_null_label_are_the_same_token_and_unlike_any_class(make, shape):
    network, x, c_noise = awake(make()), torch.randn(4, *shape), torch.randn(4)
    unlabelled = network(x, c_noise)
    assert torch.equal(unlabelled, network(x, c_noise, torch.full((4,), NULL)))
    mixed = network(x, c_noise, torch.tensor([NULL, 0, NULL, 3]))
    torch.testing.assert_close(mixed[::2], unlabelled[::2])
    outputs = [unlabelled, *(network(x, c_noise, torch.full((4,), label)) for label in range(4))]
    for i, a in enumerate(outputs):
        assert not any(torch.allclose(a, b, atol=1e-3) for b in outputs[:i])


@pytest.mark.parametrize(("make", "shape"), CONDITIONAL.values(), ids=CONDITIONAL)
def test_a_sample_does_not_depend_on_the_others_in_its_batch(make, shape):
    network, x, c_noise, labels = awake(make()), torch.randn(4, *shape), torch.randn(4), torch.arange(4)
    alone = torch.cat([network(x[i : i + 1], c_noise[i : i + 1], labels[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(network(x, c_noise, labels), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("make", "shape"), CONDITIONAL.values(), ids=CONDITIONAL)
def test_the_noise_level_and_every_coordinate_are_seen(make, shape):
    network, x = awake(make()), torch.randn(2, *shape, requires_grad=True)
    c_noise = torch.zeros(2, requires_grad=True)
    out = network(x, c_noise, torch.zeros(2, dtype=torch.int64))
    louder = network(x, c_noise + 0.1, torch.zeros(2, dtype=torch.int64))
    assert not torch.allclose(out, louder, atol=1e-3)
    out.sum().backward()
    assert bool((x.grad != 0).all())
    assert bool((c_noise.grad != 0).all())


@pytest.mark.parametrize(("make", "shape"), CONDITIONAL.values(), ids=CONDITIONAL)
def test_every_parameter_is_trained(make, shape):
    network = awake(make())
    loss = network(torch.randn(8, *shape), torch.randn(8), torch.arange(8) % 5 - 1).square().mean()
    loss.backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@given(st.lists(st.floats(-3, 1000), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_noise_embedding_is_finite_for_every_preconditionings_c_noise(levels):
    assert bool(networks.NoiseEmbedding(16)(torch.tensor(levels)).isfinite().all())


@pytest.mark.parametrize(
    "levels",
    [torch.linspace(-1.6, 1.1, 50), torch.linspace(0, 999, 1000)],
    ids=["ln(sigma)/4 from .002 to 80", "a thousand steps"],
)
def test_noise_embedding_tells_neighbouring_levels_apart(levels):
    embedded = networks.NoiseEmbedding(64)(levels)
    apart = torch.cdist(embedded, embedded) + 9 * torch.eye(len(levels))
    assert float(apart.min()) > 0.3


def test_a_label_beyond_the_classes_is_an_error():
    with pytest.raises(IndexError):
        networks.MLP(2, num_classes=4)(torch.randn(1, 2), torch.randn(1), torch.tensor([4]))


def test_the_default_digits_network_fits_in_two_megabytes():
    assert sum(p.numel() for p in networks.UNet(num_classes=10).parameters()) * 4 < 2_000_000


def test_the_judge_classifies_its_own_features():
    judge, x = awake(networks.Judge()), torch.randn(3, 1, 8, 8)
    assert judge.features(x).shape == (3, 64)
    assert judge(x).shape == (3, 10)
    torch.testing.assert_close(judge(x), judge.head(judge.features(x)))


def test_the_guide_sees_the_noise_level():
    guide, x = awake(networks.Guide(width=16)), torch.randn(3, 1, 8, 8)
    assert guide(x, torch.zeros(3)).shape == (3, 10)
    assert not torch.allclose(guide(x, torch.zeros(3)), guide(x, torch.ones(3)))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: networks.MLP(3)(torch.randn(2, 4), torch.randn(2)), r"x must be \(B, 3\)"),
        (lambda: networks.MLP(3)(torch.randn(2, 3), torch.randn(1)), r"c_noise \(B,\)"),
        (lambda: networks.MLP(3)(torch.randn(2, 3), torch.randn(2), torch.tensor([0, 1])), "num_classes="),
        (lambda: networks.UNet(1, (8, 16))(torch.randn(2, 1, 7, 8), torch.randn(2)), "multiple of 2"),
        (lambda: networks.UNet(1, (8, 16))(torch.randn(2, 3, 8, 8), torch.randn(2)), r"\(B, 1, "),
        (lambda: networks.UNet(1, (8, 12)), "widths"),
        (lambda: networks.UNet(1, ()), "widths"),
        (lambda: networks.Guide()(torch.randn(2, 1, 8, 8), torch.tensor(0.0)), "c_noise"),
        (lambda: networks.build({"name": "Unet"}), "unknown network 'Unet'; there are MLP, UNet, Judge, Guide"),
        (lambda: networks.build({}), "unknown network None"),
        (lambda: networks.build({"name": "MLP", "dims": 2}), "MLP cannot be built"),
    ],
)
def test_what_does_not_fit_is_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call()
