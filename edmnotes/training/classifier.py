"""Training a classifier of noised samples, to guide with."""

import torch
from torch.nn import functional
from tqdm import tqdm

from edmnotes import networks
from edmnotes.data import Labelled, sigma_data
from edmnotes.guidance import Classifier
from edmnotes.preconditioning import EDM
from edmnotes.training.fit import Config


def fit_classifier(data: Labelled, *, config: Config | None = None, progress: bool = True) -> Classifier:
    """Train a :class:`~edmnotes.networks.Guide` on noised images by cross-entropy, on the CPU.

    Every image of a batch gets a noise level of its own from ``config.sigmas``. It takes seconds, so nothing is kept
    on disk; weights are not averaged, and the fields of ``config`` about that and about labels are not used.

    Args:
        data: images (C, H, W) and their labels.
        config: lengths, learning rate, noise levels and seed; None for ``Config()``.
        progress: show a bar with the loss.

    Returns:
        The classifier, in evaluation mode.

    Raises:
        ValueError: if the data has no labels or holds no images.
    """
    config = config or Config()
    if data.labels is None or data.num_classes is None or len(data.shape) != 3:
        raise ValueError(f"data has samples of shape {data.shape}; a classifier needs images (C, H, W) with labels")
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = networks.Guide(data.shape[0], num_classes=data.num_classes)
    classifier = Classifier(network, EDM(sigma_data(data.x)))
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=config.lr, weight_decay=0.05)
    with tqdm(total=config.steps * config.batch, unit="image", unit_scale=True, disable=not progress) as bar:
        for step in range(config.steps):
            index = torch.randint(len(data), (config.batch,), generator=generator)
            sigma = config.sigmas.sample(config.batch, generator=generator).to(data.x)
            x = data.x[index]
            noised = x + sigma.reshape(-1, 1, 1, 1) * torch.randn(x.shape, generator=generator)
            loss = functional.cross_entropy(classifier(noised, sigma), data.labels[index])
            optimizer.param_groups[0]["lr"] = config.lr_at(step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update(config.batch)
    return classifier.eval().requires_grad_(False)
