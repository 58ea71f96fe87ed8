"""Checkpoints: a run that is killed ends where one left alone does, and nothing broken is ever taken for whole."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edmnotes import data, losses, networks, training
from edmnotes.preconditioning import EDM, Denoiser
from edmnotes.training import Config, checkpoint

STEPS = 120
KILLS = 5


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return networks.UNet(1, (8,), num_classes=3, dropout=0.2)


def train(
    directory: Path, *, steps: int = STEPS, save_seconds: float = 0.0, features: int | None = 8, **changes
) -> training.Fitted:
    """Train a network with dropout on images with labels and a log-variance, so that all there is to save is in use."""
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    images = data.Labelled(torch.randn(50, 1, 4, 4, generator=g), torch.arange(50) % 3)
    denoiser = Denoiser(network(), EDM(1.0))
    config = Config(**{"images": 16 * steps, "batch": 16, "warmup": 64, "ema_half_life": 200, **changes})
    return training.fit(
        denoiser,
        images,
        config=config,
        log_variance=None if features is None else losses.LogVariance(features),
        run_dir=directory,
        save_seconds=save_seconds,
        progress=False,
    )


def die_in_replace(directory: Path, call: int) -> None:
    """Train, and die by SIGKILL at the given call of os.replace, with a file written aside but not in place."""
    replace, calls = os.replace, iter(range(10**9))

    def fatal(source, target):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = fatal
    train(directory)


@pytest.fixture(scope="module")
def processes():
    """Fresh processes, forked from one that has imported torch and not used it: a start takes milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["edmnotes.training", "edmnotes.networks"])
    return context


def step_of(directory: Path) -> int:
    return training.about(directory)["step"] if checkpoint.exists(directory) else 0


def test_a_run_killed_at_random_moments_ends_with_the_same_weights(processes, tmp_path):
    """Five kills at random moments, then two inside the writing of a checkpoint; it is written every step."""
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    control = processes.Process(target=train, args=(alone,), kwargs={"save_seconds": 1e9})
    control.start()
    moments = random.Random(0)
    reached = [0]
    for kill_at in sorted(moments.sample(range(5, STEPS - 50), KILLS)):
        process = processes.Process(target=train, args=(killed,))
        process.start()
        while step_of(killed) < kill_at:
            assert process.is_alive(), "the run ended before it could be killed"
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.01))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        reached.append(step_of(killed))
    assert reached == sorted(set(reached))  # each one went on from where the one before was stopped
    assert reached[-1] < STEPS
    for call, lost in ((6, "the tensors"), (9, "the index")):
        before = step_of(killed)
        process = processes.Process(target=die_in_replace, args=(killed, call))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert step_of(killed) == before + call // 2, lost
        assert len(list(killed.glob("*.part"))) == 1
    last = processes.Process(target=train, args=(killed,))
    last.start()
    last.join()
    control.join()
    assert last.exitcode == control.exitcode == 0
    assert_same_checkpoint(alone, killed)


def assert_same_checkpoint(a: Path, b: Path) -> None:
    one, two = (load_file(tensors_file(directory)) for directory in (a, b))
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


FIRST_OF_LOG_VARIANCE = len(list(network().parameters()))
PARTS = (
    *("random.sigma", "random.noise", "random.label", "random.global", "order", "losses"),
    *("adam.0.exp_avg", f"adam.{FIRST_OF_LOG_VARIANCE}.exp_avg", "log_variance.last.weight"),
)


@pytest.mark.parametrize("forgotten", [None, *PARTS])
def test_a_checkpoint_that_forgets_a_part_is_found_out(tmp_path, monkeypatch, forgotten):
    """The control of the test above, in one process: stopped after five steps of eight, with and without all parts."""
    alone, stopped, write = tmp_path / "alone", tmp_path / "stopped", checkpoint.write
    train(alone, steps=8)

    class Stop(Exception):
        pass

    def stop(directory, content, tensors):
        if forgotten:
            spoiled = torch.Generator().manual_seed(99).get_state() if "random" in forgotten else None
            tensors = {**tensors, forgotten: torch.zeros_like(tensors[forgotten]) if spoiled is None else spoiled}
        write(directory, content, tensors)
        if content["step"] == 5:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", stop)
        with pytest.raises(Stop):
            train(stopped, steps=8)
    train(stopped, steps=8)
    with pytest.raises(AssertionError) if forgotten else contextlib.nullcontext():
        assert_same_checkpoint(alone, stopped)


class PowerCut(Exception):
    pass


class Disk:
    """The system's calls, cut off at the given one; what was written and not forced to disk is then lost in part."""

    def __init__(self, directory: Path, fatal: int, patch: pytest.MonkeyPatch) -> None:
        self.directory, self.fatal, self.calls = directory, fatal, 0
        self.synced = {path.stat().st_ino for path in directory.iterdir()}
        self.real_open, self.real_fsync = Path.open, os.fsync
        patch.setattr(Path, "open", lambda path, mode="r", *rest: self.open(path, mode, *rest))
        patch.setattr(os, "fsync", self.fsync)
        for owner, name in ((os, "replace"), (Path, "unlink")):
            patch.setattr(owner, name, self.counted(getattr(owner, name)))

    def count(self):
        self.calls += 1
        if self.calls > self.fatal:
            for path in self.directory.iterdir():
                if path.stat().st_ino not in self.synced:
                    os.truncate(path, path.stat().st_size // 2)
            raise PowerCut

    def counted(self, call):
        def wrapped(*args):
            self.count()
            return call(*args)

        return wrapped

    def open(self, path, mode, *rest):
        file = self.real_open(path, mode, *rest)
        if "w" in mode:
            self.synced.discard(path.stat().st_ino)
        self.count()
        return file

    def fsync(self, descriptor):
        self.count()
        self.real_fsync(descriptor)
        self.synced.add(os.fstat(descriptor).st_ino)


def test_a_power_cut_at_any_call_to_the_system_leaves_the_old_or_the_new(tmp_path):
    """Before the first, second, ... of the calls that writing makes, and after the last."""
    outcomes = []
    for fatal in range(20):
        directory = tmp_path / str(fatal)
        checkpoint.write(directory, content(1), {"ema.w": torch.ones(1000)})
        with pytest.MonkeyPatch.context() as patch:
            Disk(directory, fatal, patch)
            with contextlib.suppress(PowerCut):
                checkpoint.write(directory, content(2), {"ema.w": torch.full((1000,), 2.0)})
        index, tensors = checkpoint.read(directory)
        assert bool((tensors["ema.w"] == index["step"]).all())
        outcomes.append(index["step"])
        checkpoint.write(directory, content(3), {"ema.w": torch.ones(1000)})  # what was left over is no obstacle
        assert sorted(path.name for path in directory.iterdir()) == ["checkpoint.json", "step-00000003.safetensors"]
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {1, 2}


def content(step):
    denoiser = Denoiser(networks.MLP(1), EDM())
    return {**checkpoint.describe(denoiser), "step": step}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "run"
    return directory, train(directory, steps=4)


@pytest.fixture
def copy(finished, tmp_path):
    directory = tmp_path / "copy"
    directory.mkdir()
    for path in finished[0].iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    return directory


def tensors_file(directory):
    return next(directory.glob("*.safetensors"))


def test_load_returns_the_averaged_weights_in_evaluation_mode(finished):
    directory, fitted = finished
    loaded = training.load(str(directory))
    x, labels = torch.randn(3, 1, 4, 4), torch.tensor([0, 1, -1])
    assert not loaded.training
    assert loaded.preconditioning == EDM(1.0)
    assert torch.equal(loaded(x, 0.5, labels=labels), fitted.denoiser(x, 0.5, labels=labels))


def test_a_finished_run_is_not_trained_further(finished):
    directory, fitted = finished
    again = train(directory, steps=4)
    assert torch.equal(again.losses, fitted.losses)
    levels = torch.tensor([0.1, 1.0])
    assert torch.equal(again.log_variance(levels), fitted.log_variance(levels))


@pytest.mark.parametrize("left", [0, 7, 0.5, -1], ids=["empty", "within its header", "half", "one byte less"])
def test_truncated_tensors_are_refused_by_name(copy, left):
    path = tensors_file(copy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * left) if isinstance(left, float) else left])
    for use in (training.load, lambda d: train(d, steps=4)):
        with pytest.raises(ValueError, match=rf"damaged checkpoint: .*{path.name} .*SHA-256"):
            use(copy)


def test_one_changed_bit_is_found(copy):
    path = tensors_file(copy)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        training.load(copy)


@pytest.mark.parametrize("text", ["", "{", '{"step": 4}', "[]", "null"])
def test_a_damaged_index_is_refused_by_name(copy, text):
    (copy / "checkpoint.json").write_text(text)
    with pytest.raises(ValueError, match=r"damaged checkpoint: .*checkpoint\.json cannot be read"):
        training.load(copy)


def test_an_index_without_its_tensors_is_refused(copy):
    tensors_file(copy).unlink()
    with pytest.raises(ValueError, match=r"step-00000004\.safetensors, which checkpoint\.json names, is missing"):
        training.load(copy)


def test_a_directory_without_a_checkpoint_says_what_would_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint\.json; give the directory that"):
        training.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere' is not a directory"):
        training.load(tmp_path / "nowhere")


def test_a_half_written_first_checkpoint_is_none(finished, tmp_path):
    whole = tensors_file(finished[0]).read_bytes()
    (tmp_path / "step-00000001.safetensors").write_bytes(whole)  # in place, but its index never came
    (tmp_path / "checkpoint.json.part").write_text("{")
    with pytest.raises(FileNotFoundError):
        training.load(tmp_path)
    train(tmp_path, steps=4)  # starts anew
    assert_same_checkpoint(tmp_path, finished[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1e-4}, r"config\.lr was 0\.004, is 0\.0001"),
        ({"seed": 7}, r"config\.seed was 0, is 7"),
        ({"steps": 8}, r"config\.images was 64, is 128"),
        ({"features": None}, r"log_variance was 8 features, is None"),
        ({"features": 16}, r"log_variance was 8 features, is 16 features"),
    ],
)
def test_another_configuration_is_refused_and_the_difference_named(finished, change, message):
    with pytest.raises(ValueError, match=rf"another run: {message}\."):
        train(finished[0], **{"steps": 4, **change})


def test_other_data_are_refused(finished):
    images = data.Labelled(torch.randn(50, 1, 4, 4), torch.arange(50) % 3)
    denoiser = Denoiser(network(), EDM(2.0))
    config = Config(images=64, batch=16, warmup=64, ema_half_life=200)
    with pytest.raises(ValueError, match=r"preconditioning\.sigma_data was 1\.0, is 2\.0; data was \w+, is \w+"):
        training.fit(
            denoiser,
            images,
            config=config,
            log_variance=losses.LogVariance(8),
            run_dir=finished[0],
            progress=False,
        )


def test_an_export_loads_to_the_same_denoiser_but_cannot_be_trained_on(finished, tmp_path):
    training.export(finished[0], tmp_path / "out")
    assert tensors_file(tmp_path / "out").stat().st_size < tensors_file(finished[0]).stat().st_size / 3
    one, two = training.load(finished[0]).state_dict(), training.load(tmp_path / "out").state_dict()
    assert any(name.startswith("log_variance.") for name in load_file(tensors_file(finished[0])))
    assert {name.split(".")[0] for name in load_file(tensors_file(tmp_path / "out"))} == {"ema"}
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(ValueError, match="holds weights only"):
        train(tmp_path / "out", steps=4)


def test_a_network_of_the_users_own_is_passed_to_load(tmp_path):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x, c_noise, labels=None):
            return self.layer(x)

    fitted = training.fit(
        Denoiser(Own(), EDM(1.0)),
        data.moons(100),
        config=Config(images=128, batch=64),
        run_dir=tmp_path,
        progress=False,
    )
    with pytest.raises(ValueError, match="unknown network"):
        training.load(tmp_path)
    loaded = training.load(tmp_path, network=Own())
    assert torch.equal(loaded.network.layer.weight, fitted.denoiser.network.layer.weight)
    with pytest.raises(ValueError, match="do not fit the network"):
        training.load(tmp_path, network=networks.MLP(2))


def test_the_index_is_plain_json(finished):
    index = json.loads((finished[0] / "checkpoint.json").read_text())
    assert index["config"]["sigmas"] == {"name": "losses.LogNormal", "mean": -1.2, "std": 1.2}
