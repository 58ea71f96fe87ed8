"""Digits drawn with guidance of several kinds and scales: how right, how clear, how near and how varied they are.

The denoiser is the shared model; the weak one of autoguidance is the same network trained on a tenth of the images. The
classifier that guides is trained on the training split here, seed by seed; the one that judges never guides. All
samples are drawn by 18 steps of Heun's method on EDM's levels, with noise and labels that all rows of a seed share.

Each measure is a list, one number for each scale in ``settings``. ``recognised`` is the share that the
judge takes for its class, ``inception`` the Inception Score by the judge's probabilities, ``frechet`` the distance to
the held-out digits, ``precision`` and ``recall`` by nearest neighbours among them; recall is the coverage.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from edmnotes import data, guidance, judging, losses, metrics, noise, samplers, steps, training
from edmnotes.contract import DenoiserLike
from edmnotes.guidance import Extrapolated, Tilted, Unconditional
from edmnotes.scale import Scale

Steered = Callable[[DenoiserLike, float], DenoiserLike]


def classifier(seed: int, settings: Mapping[str, Any], *, told: bool) -> Steered:
    """Classifier guidance of the model that is told the class, or of the one that is not."""
    guide = trained_guide(seed, settings["guide_images"])
    return lambda denoiser, scale: Tilted(denoiser if told else Unconditional(denoiser), guide.log_prob, scale)


def free(seed: int, settings: Mapping[str, Any], *, interval: guidance.Interval = (0.0, float("inf"))) -> Steered:
    """Classifier-free guidance."""
    return partial(guidance.classifier_free, interval=interval)


def auto(seed: int, settings: Mapping[str, Any]) -> Steered:
    """Autoguidance by the same network, less trained."""
    weak = weak_model(seed, settings["weak_images"])
    return lambda denoiser, scale: Extrapolated(denoiser, weak, scale)


MEASURES = ("recognised", "inception", "frechet", "nn_ratio", "precision", "recall")

TABLE: dict[str, Callable[[int, Mapping[str, Any]], Steered]] = {
    "classifier": partial(classifier, told=False),
    "classifier, told the class": partial(classifier, told=True),
    "classifier-free": free,
    "classifier-free, interval": partial(free, interval=(0.2, 2.0)),
    "autoguidance": auto,
}
ROWS = tuple(TABLE)
SEEDS = (0, 1, 2)
TOLERANCE = 1e-3
SCALES = [0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0]


def settings(at: Scale) -> dict[str, Any]:
    """Scales and lengths."""
    return {
        "scales": at.pick(smoke=[0.0, 2.0], laptop=SCALES, gpu=SCALES),
        "guide_images": at.pick(smoke=256, laptop=20_000, gpu=200_000),
        "weak_images": at.pick(smoke=256, laptop=14_000, gpu=200_000),
        "steps": at.pick(smoke=4, laptop=18, gpu=18),
        "every": at.pick(smoke=6, laptop=2, gpu=1),  # one in so many held-out digits is used
        "splits": at.pick(smoke=1, laptop=100, gpu=100),
    }


def measure(row: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Draw digits at each scale and judge them."""
    denoiser, held_out, judge = training.digits_model(), data.digits().held_out, judging.load()
    real, labels = held_out.x[:: settings["every"]], cast(Tensor, held_out.labels)[:: settings["every"]]
    levels = steps.edm(settings["steps"])
    draws = noise.PerSample(range(10_000 * seed, 10_000 * seed + len(labels)))
    start = levels[0] * draws.normal((1, 8, 8))
    measures: dict[str, list[float]] = {name: [] for name in MEASURES}
    steered = TABLE[row](seed, settings)
    for scale in settings["scales"]:
        drawn = samplers.heun(steered(denoiser, scale), start, levels, labels=labels)
        report = judging.judge_digits(drawn.x, labels, splits=settings["splits"])
        with torch.no_grad():
            x = drawn.x.float()
            seen, features = judge(x).softmax(1), judge.features(x)
            near = metrics.precision_recall(features, judge.features(real))
        values = (
            report.accuracy,
            metrics.inception_score(seen),
            report.frechet,
            report.nn_ratio,
            near.precision,
            near.recall,
        )
        for name, value in zip(MEASURES, values, strict=True):
            measures[name].append(float(value))
    return {**measures, "real_to_real_median": report.real_to_real_median, "real_to_real_90": report.real_to_real_90}


def trained_guide(seed: int, images: int) -> guidance.Classifier:
    """The classifier that guides; it and the judge have seen the same digits, and nothing else in common."""
    config = training.Config(images=images, warmup=3_000, lr=2e-3, sigmas=losses.LogNormal(-0.6, 1.4), seed=100 + seed)
    return training.fit_classifier(data.digits().train, config=config, progress=sys.stderr.isatty())


def weak_model(seed: int, images: int) -> DenoiserLike:
    """The shared model's network after a tenth of its training."""
    train = data.digits().train
    config = training.Config(images=images, warmup=3_000, seed=100 + seed)
    start = training.untrained(train, seed=100 + seed)
    return training.fit(start, train, config=config, progress=sys.stderr.isatty()).denoiser
