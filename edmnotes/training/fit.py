"""The training loop."""

import copy
import hashlib
import math
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from edmnotes import losses, networks, scale
from edmnotes.data import Labelled, sigma_data
from edmnotes.preconditioning import EDM, Denoiser
from edmnotes.training import checkpoint


@dataclass(frozen=True)
class Config:
    """How to train. Lengths are counted in images, so that they keep their meaning when the batch changes.

    Attributes:
        images: how many to train on in all, each epoch anew; rounded up to whole batches. The default follows the
            scale.
        batch: images a step.
        lr: highest learning rate, of Adam.
        warmup: images over which the learning rate rises linearly from 0; after them it falls to 0 as a half cosine.
        ema_half_life: images after which a weight counts half in the averaged weights.
        ema_rampup: the half-life is at most this fraction of the images seen, so that early averages hold no noise.
        label_dropout: probability that a sample is shown with the null token in place of its label.
        clip: largest norm of the gradient; longer ones are shortened to it.
        sigmas: distribution of the noise levels.
        seed: of everything random in training: order of the data, noise levels, noise, labels dropped, dropout.

    Raises:
        ValueError: if a number is out of its range.
    """

    images: int = field(default_factory=lambda: scale.current().pick(smoke=4_096, laptop=140_000, gpu=2_000_000))
    batch: int = 64
    lr: float = 4e-3
    warmup: int = 10_000
    ema_half_life: int = 10_000
    ema_rampup: float = 0.05
    label_dropout: float = 0.1
    clip: float = 1.0
    sigmas: losses.Sigmas = field(default_factory=losses.LogNormal)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("images", "batch", "lr", "ema_half_life", "ema_rampup", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)}; it must be positive and finite")
        if not 0 <= self.warmup < math.inf:
            raise ValueError(f"warmup = {self.warmup}; it must be a number of images, 0 or more")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout = {self.label_dropout}; it must be a probability, e.g. 0.1")
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed}; it must not be negative")

    @property
    def steps(self) -> int:
        """Number of steps."""
        return math.ceil(self.images / self.batch)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        seen = (step + 1) * self.batch
        rise = min(1.0, seen / self.warmup) if self.warmup else 1.0
        left = max(0.0, seen - self.warmup) / max(self.batch, self.steps * self.batch - self.warmup)
        return self.lr * rise * (1 + math.cos(math.pi * min(1.0, left))) / 2

    def ema_decay_at(self, step: int) -> float:
        """Share of the averaged weights that a step keeps, counted from 0."""
        half_life = min(self.ema_half_life, self.ema_rampup * (step + 1) * self.batch)
        return 0.5 ** (self.batch / half_life)


@dataclass(frozen=True, eq=False)
class Fitted:
    """What training returns.

    Attributes:
        denoiser: with the averaged weights, in evaluation mode, on the device it was trained on.
        losses: the mean of the weighted denoising loss at each step (:func:`edmnotes.losses.denoising`), whether or not
            a log-variance was learned beside it; float32 on the CPU.
        log_variance: what became of the one that was passed in, beside the denoiser; None if none was.
    """

    denoiser: Denoiser
    losses: Float[Tensor, " steps"]
    log_variance: losses.LogVariance | None = None


def untrained(data: Labelled, *, seed: int = 0) -> Denoiser:
    """Make a fresh denoiser that suits the data: a :class:`UNet` for images, an :class:`MLP` for points, EDM around it.

    Args:
        data: gives the shape, the number of classes and sigma_data.
        seed: of the initial weights; torch's global random state is left alone.

    Raises:
        ValueError: if a sample is neither a point (D,) nor an image (C, H, W).
    """
    if len(data.shape) not in (1, 3):
        raise ValueError(f"samples have shape {data.shape}; there is a network for points (D,) and images (C, H, W)")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = (
            networks.UNet(data.shape[0], num_classes=data.num_classes)
            if len(data.shape) == 3
            else networks.MLP(data.shape[0], num_classes=data.num_classes)
        )
    return Denoiser(network, EDM(sigma_data(data.x)))


def fit(
    denoiser: Denoiser,
    data: Labelled,
    *,
    config: Config | None = None,
    log_variance: losses.LogVariance | None = None,
    run_dir: str | Path | None = None,
    save_seconds: float = 30.0,
    progress: bool = True,
) -> Fitted:
    """Train a denoiser by the denoising loss (Karras et al. 2022, eq. 8) with Adam, and average its weights.

    With a ``run_dir`` that holds a checkpoint of the same run, training goes on from there, and on the CPU ends with
    the very weights of a run that was never stopped. What is passed in stays as it is.

    Args:
        denoiser: where to start.
        data: what to learn.
        config: how to train; None for ``Config()``.
        log_variance: learn it too, and weigh each level by it (label ``learned-log-variance``); None to weigh the
            levels by the preconditioning alone. It is kept in the checkpoint, not in what :func:`load` returns.
        run_dir: where to keep the checkpoint; None to keep none.
        save_seconds: how often to save; the end is always saved, and so is an interrupt (Ctrl-C), before
            KeyboardInterrupt is raised.
        progress: show a bar with the weighted denoising loss and the images a second.

    Returns:
        ``Fitted``, with the averaged weights.

    Raises:
        ValueError: if the data is not finite, or the checkpoint in ``run_dir`` is damaged or of another run (the
            message says what differs).
        FloatingPointError: if the loss is not finite; the checkpoint then stays the last good one.
    """
    config = config or Config()
    if not bool(data.x.isfinite().all()):
        raise ValueError("data.x holds values that are not finite; remove them before training")
    at = scale.current()
    directory = None if run_dir is None else Path(run_dir)
    with torch.random.fork_rng(devices=[at.device] if at.device.type == "cuda" else []), _Interrupt() as interrupt:
        run = _Run(denoiser, data, config, log_variance, at)
        if directory and checkpoint.exists(directory):
            run.resume(directory)
        bar = tqdm(
            total=config.steps * config.batch,
            initial=run.step * config.batch,
            unit="image",
            unit_scale=True,
            disable=not progress,
        )
        with bar:
            saved_at = monotonic()
            while run.step < config.steps:
                run.advance()
                if bar.update(config.batch):
                    bar.set_postfix(loss=f"{run.recent_loss():.3f}", refresh=False)
                due = run.step == config.steps or interrupt.asked or monotonic() - saved_at >= save_seconds
                if due or run.step % 20 == 0:  # not each step: looking at the loss waits for the device
                    run.check()
                if due and directory:
                    run.save(directory)
                    saved_at = monotonic()
                if interrupt.asked:
                    raise KeyboardInterrupt
        return Fitted(cast(Denoiser, run.ema.module.eval()), run.losses.cpu(), run.log_variance)


class _Order:
    """Which samples come next: a fresh permutation each epoch, batches running across their seams."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.generator, self.left, self.n = generator, torch.empty(0, dtype=torch.int64), n

    def next(self, batch: int) -> Int[Tensor, " batch"]:
        while len(self.left) < batch:
            self.left = torch.cat([self.left, torch.randperm(self.n, generator=self.generator)])
        taken, self.left = self.left[:batch], self.left[batch:]
        return taken


class _Run:
    """Everything that changes while training, in one place, so that it can be saved and restored whole."""

    def __init__(
        self,
        denoiser: Denoiser,
        data: Labelled,
        config: Config,
        log_variance: losses.LogVariance | None,
        at: scale.Scale,
    ) -> None:
        self.config, self.device = config, at.device
        self.content = {
            **checkpoint.describe(denoiser),
            "config": checkpoint.named(config),
            "log_variance": None if log_variance is None else f"{log_variance.features} features",
            "data": digest(data),
            "device": at.device.type,
            "precision": "bfloat16" if at.mixed_precision else "float32",
        }
        self.model = copy.deepcopy(denoiser).to(at.device).train()
        self.ema = AveragedModel(self.model)
        self.log_variance = copy.deepcopy(log_variance)
        self.parameters = [*self.model.parameters()]
        if self.log_variance is not None:
            self.log_variance.to(at.device)
            self.parameters += self.log_variance.parameters()
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.lr, betas=(0.9, 0.99), fused=True)
        self.x = data.x.to(at.device)
        self.labels = None if data.labels is None else data.labels.to(at.device)
        # Streams of their own: a change in how one is used leaves the others as they were.
        seeds = [int(s) for s in np.random.SeedSequence(config.seed).generate_state(5, np.uint64)]
        self.random = {
            "order": torch.Generator().manual_seed(seeds[0]),
            "sigma": torch.Generator().manual_seed(seeds[1]),
            "noise": torch.Generator(at.device).manual_seed(seeds[2]),
            "label": torch.Generator(at.device).manual_seed(seeds[3]),
        }
        torch.manual_seed(seeds[4])  # dropout draws from the global generators
        self.order = _Order(len(data), self.random["order"])
        self.losses = torch.full((config.steps,), math.nan, device=at.device)
        self.step = 0
        self.autocast: Callable[[], AbstractContextManager] = lambda: torch.autocast(
            at.device.type, torch.bfloat16, enabled=at.mixed_precision
        )
        self.loss = torch.compile(losses.denoising) if at.mixed_precision else losses.denoising

    def advance(self) -> None:
        """Take one step."""
        config = self.config
        index = self.order.next(config.batch).to(self.device)
        x = self.x[index]
        sigma = config.sigmas.sample(config.batch, generator=self.random["sigma"]).to(x)
        noise = torch.randn(x.shape, generator=self.random["noise"], device=self.device)
        cond = {} if self.labels is None else {"labels": self._dropped(self.labels[index])}
        with self.autocast():
            loss = self.loss(self.model, x, sigma, noise, **cond)
        objective = (loss if self.log_variance is None else self.log_variance.objective(loss, sigma)).mean()
        self.optimizer.zero_grad()
        objective.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(self.step)
        self.optimizer.step()
        self.ema.multi_avg_fn = get_ema_multi_avg_fn(config.ema_decay_at(self.step))
        self.ema.update_parameters(self.model)
        # Kept is the denoising loss, in any case comparable; an objective that broke down shows itself in its place.
        self.losses[self.step] = torch.where(objective.isfinite(), loss.mean(), objective).detach()
        self.step += 1

    def _dropped(self, labels: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        chance = torch.rand(labels.shape, generator=self.random["label"], device=self.device)
        return labels.where(chance >= self.config.label_dropout, networks.NULL)

    def recent_loss(self) -> float:
        """Mean loss of the last steps."""
        return float(self.losses[max(0, self.step - 50) : self.step].mean())

    def check(self) -> None:
        """Refuse to go on from a loss that is not finite."""
        bad = (~self.losses[: self.step].isfinite()).nonzero()
        if len(bad):
            step = int(bad[0])
            raise FloatingPointError(
                f"the loss is {float(self.losses[step])} at step {step} (learning rate {self.config.lr_at(step):.2g}); "
                f"try a lower lr than {self.config.lr} or a longer warmup than {self.config.warmup} images"
            )

    def save(self, directory: Path) -> None:
        """Make this moment the checkpoint of ``directory``."""
        checkpoint.write(directory, {**self.content, "step": self.step}, self.state())

    def state(self) -> dict[str, Tensor]:
        """Return all that resuming needs, flat and by name."""
        moments = self.optimizer.state_dict()["state"]
        state = {
            **{f"model.{name}": tensor for name, tensor in self.model.state_dict().items()},
            **{f"{checkpoint.EMA}{name}": tensor for name, tensor in self.ema.module.state_dict().items()},
            **{f"adam.{i}.{name}": tensor for i, those in moments.items() for name, tensor in those.items()},
            **{f"random.{name}": generator.get_state() for name, generator in self.random.items()},
            "random.global": torch.get_rng_state(),
            "order": self.order.left,
            "losses": self.losses,
        }
        if self.log_variance is not None:
            state |= {f"log_variance.{name}": tensor for name, tensor in self.log_variance.state_dict().items()}
        if self.device.type == "cuda":
            state["random.cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def resume(self, directory: Path) -> None:
        """Restore the checkpoint in ``directory``, after seeing that it is of this very run."""
        content, tensors = checkpoint.read(directory)
        then, now = _flat(content), _flat(self.content)
        differ = [f"{key} was {then.get(key)}, is {now[key]}" for key in now if then.get(key) != now[key]]
        if differ:
            raise ValueError(
                f"{str(directory)!r} holds the checkpoint of another run: {'; '.join(differ)}. "
                "Give the same values to go on with it, or another directory to start anew"
            )
        if "order" not in tensors:
            raise ValueError(f"{str(directory)!r} holds weights only, as exported; training cannot go on from them")
        self.step = content["step"]
        self.model.load_state_dict(_under("model.", tensors))
        self.ema.module.load_state_dict(_under(checkpoint.EMA, tensors))
        self.ema.n_averaged.fill_(self.step)
        if self.log_variance is not None:
            self.log_variance.load_state_dict(_under("log_variance.", tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in _under("adam.", tensors).items():
            i, name = key.split(".")
            moments.setdefault(int(i), {})[name] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for name, generator in self.random.items():
            generator.set_state(tensors[f"random.{name}"])
        torch.set_rng_state(tensors["random.global"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        self.order.left = tensors["order"]
        self.losses.copy_(tensors["losses"])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def digest(data: Labelled) -> str:
    """Return the SHA-256 of the data, by which a checkpoint knows what it was trained on."""
    parts = [data.x] if data.labels is None else [data.x, data.labels]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{tuple(part.shape)}".encode() + part.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


class _Interrupt:
    """Turns Ctrl-C into a wish that the loop looks at between steps; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "_Interrupt":
        self.before = None
        if threading.current_thread() is threading.main_thread():  # others may not set handlers, and get no Ctrl-C
            self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
