"""Training: it learns what is known in closed form, and every part of the recipe does what it says."""

import json
import math
import os
import signal
from itertools import pairwise

import pytest
import torch
from torch import nn

from edmnotes import data, losses, networks, presets, training
from edmnotes.data import Labelled
from edmnotes.exact import Gaussian
from edmnotes.preconditioning import EDM, Denoiser
from edmnotes.training import Config, checkpoint, fit

QUIET = {"progress": False}


@pytest.fixture(autouse=True)
def one_thread():
    """The networks here are too small for two, and other jobs may want the second core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**changes):
    return Config(**{"images": 64 * 12, "batch": 64, "warmup": 128, "ema_half_life": 200, **changes})


def tiny(points, seed=0, **options):
    torch.manual_seed(seed)
    network = networks.MLP(points.shape[0], width=16, depth=1, num_classes=points.num_classes, **options)
    return Denoiser(network, EDM(data.sigma_data(points.x)))


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.fixture(scope="module")
def moons():
    return data.moons(500)


def test_it_learns_the_exact_denoiser_of_a_gaussian():
    """For data N(mean, std²) the best denoiser is known; training must come near it at every σ that it saw."""
    mean, std = 0.3, 0.5
    x = mean + std * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    points = Labelled(x)
    config = Config(images=256 * 600, batch=256, lr=2e-3, warmup=2560, seed=1)
    fitted = fit(tiny(points), points, config=config, **QUIET)
    exact = Gaussian(mean, std)
    test = mean + std * torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
    for sigma in (0.1, 0.3, 1.0, 3.0):
        noisy = test + sigma * torch.randn(2000, 2, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            error = (fitted.denoiser(noisy, sigma) - exact(noisy, sigma)).square().mean()
        # The least error any denoiser makes is std² sigma² / (std² + sigma²); ours may add three percent to it.
        assert error < 0.03 * std**2 * sigma**2 / (std**2 + sigma**2), sigma


def test_the_loss_falls_and_starts_at_one_for_centred_data():
    points = data.eight_gaussians(2000)
    fitted = fit(tiny(points), points, config=Config(images=256 * 150, batch=256, lr=2e-3, warmup=2560), **QUIET)
    assert fitted.losses.shape == (150,)
    assert float(fitted.losses[:3].mean()) == pytest.approx(1, abs=0.15)
    assert float(fitted.losses[-20:].mean()) < 0.85


def test_what_was_passed_in_and_torchs_random_state_stay_as_they_were(moons):
    denoiser = tiny(moons)
    torch.manual_seed(5)
    state, before = torch.get_rng_state(), weights(denoiser)
    fitted = fit(denoiser, moons, config=small(), **QUIET)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(denoiser), before)
    assert not torch.equal(weights(fitted.denoiser), before)
    assert not fitted.denoiser.training


def test_the_seed_decides_everything(moons):
    """Dropout included, which draws from torch's global generator."""
    images = Labelled(torch.randn(40, 1, 8, 8), torch.arange(40) % 3)
    denoiser = Denoiser(networks.UNet(1, (8,), num_classes=3, dropout=0.5), EDM(1.0))
    runs = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        runs.append(weights(fit(denoiser, images, config=small(images=32 * 4, batch=32, seed=seed), **QUIET).denoiser))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(weights(training.untrained(images, seed=3)), weights(training.untrained(images, seed=3)))
    assert not torch.equal(weights(training.untrained(images, seed=3)), weights(training.untrained(images, seed=4)))


@pytest.mark.parametrize("name", presets.PRESETS)
def test_values_of_the_design_space_are_written_as_plain_data_and_read_back(name):
    row, sigma = presets.load(name), torch.logspace(-1, 1, 5, dtype=torch.float64)
    before = row.preconditioning(0.5)
    after = checkpoint.made(json.loads(json.dumps(checkpoint.named(before))))
    for coefficient in ("c_skip", "c_out", "c_in", "c_noise", "weight"):
        torch.testing.assert_close(getattr(after, coefficient)(sigma), getattr(before, coefficient)(sigma))
    config = Config(images=64, sigmas=row.sigmas)
    again = checkpoint.made(json.loads(json.dumps(checkpoint.named(config)))["sigmas"])
    drawn = [d.sample(9, generator=torch.Generator().manual_seed(0)) for d in (row.sigmas, again)]
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    "content",
    [
        *({"name": "os.system"}, {"name": "preconditioning.Denoiser"}, {"name": "preconditioning"}, {}),
        *({"name": "preconditioning.EDM", "sigma": 1.0}, {"name": "preconditioning.EDM", "sigma_data": -1.0}),
    ],
)
def test_what_is_no_value_of_the_design_space_is_refused(content):
    with pytest.raises(ValueError, match=r"design space|cannot be made|sigma_data"):
        checkpoint.made(content)


def test_untrained_chooses_the_network_by_the_shape_of_a_sample(moons):
    assert training.untrained(moons).network.config["name"] == "MLP"
    image = training.untrained(Labelled(torch.randn(4, 3, 8, 8)))
    assert (image.network.config["name"], image.network.config["channels"]) == ("UNet", 3)
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        training.untrained(Labelled(torch.randn(4, 2, 3)))


def test_learning_rate_rises_linearly_then_falls_to_zero():
    config = Config(images=10_000, batch=100, warmup=2_000, lr=0.5)
    rates = [config.lr_at(step) for step in range(config.steps)]
    assert rates[0] == pytest.approx(0.5 / 20)
    assert rates[9] == pytest.approx(0.25)
    assert max(rates) == rates[19] == 0.5
    assert rates[59] == pytest.approx(0.25)  # half of the fall
    assert rates[-1] == 0
    assert all(a > b for a, b in pairwise(rates[19:]))


def test_ema_halves_a_weight_in_its_half_life_and_starts_short():
    config = Config(images=10**6, batch=100, ema_half_life=5_000, ema_rampup=0.05)
    late = math.prod(config.ema_decay_at(step) for step in range(5_000, 5_050))
    assert late == pytest.approx(0.5)
    assert config.ema_decay_at(0) == pytest.approx(0.5**20)  # 100 images against a half-life of 5


def test_averaged_weights_follow_the_recursion(moons, monkeypatch, tmp_path):
    saved = []
    monkeypatch.setattr(
        checkpoint, "write", lambda _, content, tensors: saved.append((content["step"], clone(tensors)))
    )
    config = small()
    fit(tiny(moons), moons, config=config, run_dir=tmp_path, save_seconds=0, **QUIET)
    assert [step for step, _ in saved] == list(range(1, config.steps + 1))
    for (_, before), (step, after) in pairwise(saved):
        keep = config.ema_decay_at(step - 1)
        for name in (name for name in after if name.startswith("ema.")):
            now = after["model." + name.removeprefix("ema.")]
            torch.testing.assert_close(after[name], keep * before[name] + (1 - keep) * now)


def clone(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize(("dropped", "null_row", "class_rows"), [(0.0, False, True), (1.0, True, False)])
def test_label_dropout_decides_which_embeddings_are_trained(moons, dropped, null_row, class_rows):
    denoiser = training.untrained(moons)
    before = denoiser.network.embed.label.weight.detach()
    fitted = fit(denoiser, moons, config=small(label_dropout=dropped), **QUIET)
    moved = (fitted.denoiser.network.embed.label.weight.detach() != before).any(dim=1)
    assert moved.tolist() == [null_row, class_rows, class_rows]


def test_each_epoch_shows_each_sample_once(monkeypatch):
    """Batches of 64 run across the seams of epochs of 100."""
    points = Labelled(torch.arange(200.0).reshape(100, 2))
    seen, loss = [], losses.denoising

    def spy(denoiser, x, *rest, **cond):
        seen.extend((x[:, 0] / 2).long().tolist())
        return loss(denoiser, x, *rest, **cond)

    monkeypatch.setattr(losses, "denoising", spy)
    fit(tiny(points), points, config=small(images=64 * 25), **QUIET)
    epochs = [seen[i : i + 100] for i in range(0, 1600, 100)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 16


def test_the_gradient_is_clipped(moons, monkeypatch):
    norms, clip = [], nn.utils.clip_grad_norm_

    def spy(parameters, limit):
        parameters = list(parameters)
        clip(parameters, limit)
        norms.append(torch.stack([p.grad.norm() for p in parameters]).norm())

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", spy)
    fit(tiny(moons), moons, config=small(clip=1e-3), **QUIET)
    assert max(norms) == pytest.approx(1e-3, rel=1e-3)


def test_a_learned_log_variance_ends_at_the_loss_of_each_level(monkeypatch):
    """And what is passed in stays, what is recorded is the denoising loss, and the denoiser is a denoiser only."""
    points, seen, loss = data.eight_gaussians(2000), [], losses.denoising

    def spy(*arguments, **cond):
        values = loss(*arguments, **cond)
        seen.append(values.detach().mean())
        return values

    monkeypatch.setattr(losses, "denoising", spy)
    start, log_variance = tiny(points), losses.LogVariance()
    config = Config(images=256 * 400, batch=256, lr=4e-3, warmup=2560, label_dropout=1.0)
    fitted = fit(start, points, config=config, log_variance=log_variance, **QUIET)
    sigmas = torch.logspace(-1.3, 0.3, 9, dtype=torch.float64)
    measured = losses.by_level(fitted.denoiser, points.x, sigmas).loss.log()
    assert float(measured.max() - measured.min()) > 0.4
    torch.testing.assert_close(fitted.log_variance(sigmas).detach().double(), measured, rtol=0, atol=0.12)
    assert torch.equal(fitted.losses, torch.stack(seen))
    assert torch.equal(log_variance(sigmas), torch.zeros(9))
    assert fitted.denoiser.state_dict().keys() == start.state_dict().keys()
    assert fit(start, points, config=small(), **QUIET).log_variance is None


def test_an_objective_that_is_not_finite_stops_training(moons):
    log_variance = losses.LogVariance()
    nn.init.constant_(log_variance.last.bias, -100.0)
    with pytest.raises(FloatingPointError, match="loss is inf at step 0"):
        fit(tiny(moons), moons, config=small(), log_variance=log_variance, **QUIET)


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_good_checkpoint(moons, tmp_path):
    class Breaks(networks.MLP):
        calls = 0

        def forward(self, x, c_noise, labels=None):
            Breaks.calls += 1
            return super().forward(x, c_noise, labels) * (math.nan if Breaks.calls == 9 else 1)

    denoiser = Denoiser(Breaks(2, width=16, depth=1, num_classes=2), EDM(1.0))
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 8 .*lower lr than 0\.004"):
        fit(denoiser, moons, config=small(), run_dir=tmp_path, save_seconds=0, **QUIET)
    assert training.about(tmp_path)["step"] == 8
    assert bool(weights(training.load(tmp_path)).isfinite().all())


def test_data_that_is_not_finite_is_refused():
    points = Labelled(torch.tensor([[0.0, 1.0], [math.inf, 0.0]]))
    with pytest.raises(ValueError, match=r"data\.x holds values that are not finite"):
        fit(Denoiser(networks.MLP(2), EDM()), points, config=small(), **QUIET)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("images", 0),
        ("batch", -1),
        ("lr", math.nan),
        ("lr", 0.0),
        ("warmup", -1),
        ("ema_half_life", 0),
        ("ema_rampup", math.inf),
        ("label_dropout", 1.1),
        ("clip", 0),
        ("seed", -1),
    ],
)
def test_a_number_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} = {value}"):
        Config(**{field: value})


def test_the_scale_decides_how_long(monkeypatch):
    lengths = []
    for name in ("smoke", "laptop", "gpu"):
        monkeypatch.setenv("EDMNOTES_SCALE", name)
        lengths.append(Config().images)
    assert lengths == sorted(set(lengths))


def test_progress_shows_the_loss_and_images_a_second(moons, capsys):
    fit(tiny(moons), moons, config=small(images=64 * 400))
    shown = capsys.readouterr().err
    assert "loss=" in shown
    assert "image/s" in shown


@pytest.mark.skipif(os.name != "posix", reason="signals to oneself")
def test_an_interrupt_saves_and_the_run_goes_on_to_the_same_weights(moons, tmp_path):
    config = small()
    whole = fit(tiny(moons), moons, config=config, **QUIET)
    handler = signal.getsignal(signal.SIGINT)

    class Interrupted(networks.MLP):
        def forward(self, x, c_noise, labels=None):
            if not (tmp_path / "run").exists():
                os.kill(os.getpid(), signal.SIGINT)
            return super().forward(x, c_noise, labels)

    denoiser = tiny(moons)
    denoiser.network.__class__ = Interrupted
    with pytest.raises(KeyboardInterrupt):
        fit(denoiser, moons, config=config, run_dir=tmp_path / "run", **QUIET)
    assert signal.getsignal(signal.SIGINT) is handler
    assert training.about(tmp_path / "run")["step"] == 1  # the step that was under way was ended, then saved
    again = fit(denoiser, moons, config=config, run_dir=tmp_path / "run", **QUIET)
    assert torch.equal(weights(again.denoiser), weights(whole.denoiser))
