"""The command line: what it makes, what it says, how it refuses. One run of a few steps serves most tests."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from edmnotes import cli, data, presets, training


@pytest.fixture(autouse=True)
def smoke(monkeypatch):
    monkeypatch.setenv("EDMNOTES_SCALE", "smoke")


SHORT = ("--images", "128", "--batch", "64")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDMNOTES_SCALE", "smoke")
        assert cli.main(["train", "--out", str(out), *SHORT]) == 0
    return out


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """A run on points, labels and all, of another preset value than images have."""
    out = tmp_path_factory.mktemp("cli") / "points"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDMNOTES_SCALE", "smoke")
        assert cli.main(["train", "--data", "moons", "--out", str(out), *SHORT]) == 0
    return out


def draw(run, path, *words):
    assert cli.main(["sample", str(run), "--steps", "3", "--out", str(path), *words]) == 0
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


def test_train_keeps_a_run_that_python_can_load(run):
    denoiser = training.load(run)
    assert denoiser(torch.zeros(2, 1, 8, 8), 1.0, labels=torch.tensor([3, 4])).shape == (2, 1, 8, 8)
    assert training.about(run)["step"] == 2
    assert json.loads((run / "run.json").read_text()) == {"data": "digits", "preset": "edm"}


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_preset_trains_and_samples_finite_images(preset, tmp_path):
    directory, out = tmp_path / "run", tmp_path / "x.npz"
    words = ["train", "--preset", preset, "--out", str(directory), "--images", "256", "--batch", "64"]
    assert cli.main(words) == 0
    assert training.load(directory).preconditioning.c_noise(torch.tensor(1.0)).isfinite()
    assert cli.main(["sample", str(directory), "--n", "3", "--steps", "4", "--labels", "all", "--out", str(out)]) == 0
    with np.load(out) as arrays:
        assert arrays["x"].shape == (3, 1, 8, 8)
        assert np.isfinite(arrays["x"]).all()
    assert cli.main(words) == 0  # the same run, read back: nothing in its configuration differs


def test_train_again_goes_on_or_refuses(run, tmp_path, capsys):
    assert cli.main(["train", "--out", str(run), *SHORT]) == 0
    assert "from step 2 of 2" in capsys.readouterr().out
    assert cli.main(["train", "--out", str(run), *SHORT, "--lr", "0.5"]) == 2
    assert "another run: config.lr was" in capsys.readouterr().err
    assert cli.main(["train", "--out", str(run), *SHORT, "--data", "moons"]) == 2
    assert "holds a run of {'data': 'digits'" in capsys.readouterr().err


def test_ctrl_c_saves_and_the_printed_command_goes_on(tmp_path):
    words = ["train", "--out", str(tmp_path / "run"), "--images", "480", "--batch", "8"]
    command = [sys.executable, "-m", "edmnotes", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    heard = b""
    while b"loss=" not in heard:
        assert process.poll() is None, "the run ended before it could be interrupted"
        heard += process.stderr.read1()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1] == f"stopped; go on with: python -m edmnotes {' '.join(words)}"
    reached = training.about(tmp_path / "run")["step"]
    assert 0 < reached < 60
    assert cli.main(words) == 0
    assert training.about(tmp_path / "run")["step"] == 60


def test_a_sample_depends_on_its_seed_alone(run, tmp_path):
    """Not on how many there are, nor on where the batch is cut."""
    many = draw(run, tmp_path / "many.npz", "--n", "300", "--labels", "0,1,2")
    few = draw(run, tmp_path / "few.npz", "--n", "2", "--seed", "258", "--labels", "0,1")
    assert many["x"].shape == (300, 1, 8, 8)
    assert many["x"].dtype == np.float32
    assert many["seeds"].tolist() == list(range(300))
    assert many["labels"].tolist() == [0, 1, 2] * 100
    np.testing.assert_allclose(many["x"][258:260], few["x"], atol=1e-4)
    assert np.abs(many["x"][0] - many["x"][3]).max() > 0.1  # same class, another seed


class Echo(torch.nn.Module):
    """A denoiser that answers with the label, and remembers how strong the noise was that it was first shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.first = None

    def forward(self, x, sigma, labels):
        self.first = float(x.std()) if self.first is None else self.first
        return labels.to(x)[:, None].expand_as(x)


def test_each_sample_gets_its_own_label_and_starts_at_the_first_level():
    """The last step returns the denoiser's answer: here the label. More samples than a batch holds."""
    echo, labels = Echo(), torch.arange(600)
    x = cli.generate(echo, presets.load("edm"), (4,), range(600), labels, steps=2).x
    assert torch.equal(x, labels.float()[:, None].expand(600, 4))
    assert echo.first == pytest.approx(80, rel=0.1)


def test_labels_are_cycled_all_or_none(run, tmp_path):
    every = draw(run, tmp_path / "all.npz", "--n", "12", "--labels", "all")
    none = draw(run, tmp_path / "none.npz", "--n", "12")
    assert every["labels"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert none["labels"].tolist() == [-1] * 12
    assert not np.array_equal(every["x"], none["x"])


def test_a_png_shows_the_samples_as_ink_on_paper(run, tmp_path):
    path = tmp_path / "x.png"
    x = torch.from_numpy(draw(run, tmp_path / "x.npz", "--n", "12")["x"]).clamp(-1, 1)
    assert cli.main(["sample", str(run), "--n", "12", "--steps", "3", "--out", str(path)]) == 0
    picture = Image.open(path)
    assert picture.size == (6 * (10 * 9 - 1), 6 * (2 * 9 - 1))
    pixels = np.asarray(picture, dtype=float)[3::6, 3::6]
    np.testing.assert_allclose(pixels[9:17, 9:17], 127.5 * (1 - x[11, 0].numpy()), atol=0.51)
    assert (pixels[8] == 255).all()  # the paper between the rows


def test_a_file_is_replaced_whole_or_not_at_all(run, tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    before = draw(run, path, "--n", "3")

    def full(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert cli.main(["sample", str(run), "--n", "4", "--steps", "3", "--out", str(path)]) == 2
    with np.load(path) as found:
        assert np.array_equal(found["x"], before["x"])
    assert len(draw(run, path, "--n", "4")["x"]) == 4


def test_points_are_sampled_but_not_drawn_or_judged(points, tmp_path, capsys):
    assert draw(points, tmp_path / "x.npz", "--n", "5", "--labels", "1")["x"].shape == (5, 2)
    assert cli.main(["sample", str(points), "--out", str(tmp_path / "x.png")]) == 2
    assert "are points, not images; write them to .npz" in capsys.readouterr().err
    assert cli.main(["evaluate", str(points)]) == 2
    assert "was trained on moons" in capsys.readouterr().err


def test_evaluate_prints_and_keeps_a_report(run, tmp_path, capsys):
    assert cli.main(["evaluate", str(run), "--seed", "7", "--steps", "4"]) == 0
    printed = capsys.readouterr().out
    kept = json.loads((run / "report.json").read_text())
    report, provenance = kept["report"], kept["provenance"]
    assert report["n"] == len(data.digits().held_out.labels[::9])
    assert report["accuracy"] < 0.5  # two steps of training teach nothing
    assert report["frechet"] > report["real_to_real_90"]
    assert f"{report['frechet']:.2f}" in printed
    assert provenance["command"] == f"python -m edmnotes evaluate {run} --steps 4 --seed 7"
    assert (provenance["seed"], provenance["scale"]) == (7, "smoke")
    assert provenance["model"]["sha256"] == training.about(run)["sha256"]
    assert provenance["versions"]["torch"] == torch.__version__
    assert cli.main(["evaluate", str(run), "--steps", "1", "--out", str(tmp_path / "other.json")]) == 0
    assert json.loads((tmp_path / "other.json").read_text())["report"]["n"] == report["n"]


def test_shared_means_the_package_s_own_model_and_is_not_written_to(run, tmp_path, monkeypatch, capsys):
    shutil.copytree(run, tmp_path / "shared", ignore=shutil.ignore_patterns("run.json", "report.json"))
    monkeypatch.setattr(cli.checkpoint, "DIGITS", tmp_path / "shared")
    before = {path.name for path in (tmp_path / "shared").iterdir()}
    assert np.array_equal(
        draw("shared", tmp_path / "a.npz", "--n", "2")["x"], draw(run, tmp_path / "b.npz", "--n", "2")["x"]
    )
    assert cli.main(["evaluate", "shared", "--steps", "1"]) == 0
    assert "kept in" not in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "shared").iterdir()} == before


def truncated(run, tmp_path):
    copy = tmp_path / "truncated"
    shutil.copytree(run, copy)
    tensors = next(copy.glob("*.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-100])
    return copy


def unrecorded(run, tmp_path):
    copy = tmp_path / "unrecorded"
    shutil.copytree(run, copy)
    (copy / "run.json").unlink()
    return copy


def misrecorded(run, tmp_path):
    copy = tmp_path / "misrecorded"
    shutil.copytree(run, copy)
    (copy / "run.json").write_text('{"data": ')
    return copy


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --out {new} --data imagenet", "unknown data set 'imagenet'; there are digits, "),
        ("train --out {new} --preset ddmp", "unknown preset 'ddmp'; there are vp, ve, iddpm, edm, ddpm, ddim, smld, "),
        ("train --out {new} --images 0", "images = 0; it must be positive"),
        ("train --out {new} --batch 0", "batch = 0; it must be positive"),
        ("train --out {new} --lr nan", "lr = nan; it must be positive"),
        ("train --out {new} --seed=-1", "seed = -1; it must not be negative"),
        ("train --out {file}", "File exists"),
        ("sample {new} --out {tmp}/x.npz", "is not a directory; give the directory that"),
        ("sample {tmp} --out {tmp}/x.npz", "holds no checkpoint.json"),
        ("sample {truncated} --out {tmp}/x.npz", "is not what was written, its SHA-256 differs"),
        ("sample {unrecorded} --out {tmp}/x.npz", "holds a checkpoint but no run.json"),
        ("sample {misrecorded} --out {tmp}/x.npz", "run.json cannot be read"),
        ("sample {run} --n 0 --out {tmp}/x.npz", "n = 0; it must be 1 or more"),
        ("sample {run} --n=-3 --out {tmp}/x.npz", "n = -3; it must be 1 or more"),
        ("sample {run} --steps 0 --out {tmp}/x.npz", "steps = 0; it must be 1 or more"),
        ("sample {run} --seed=-5 --n 2 --out {tmp}/x.npz", "seed = -5; it must not be negative"),
        ("sample {run} --labels 0,10 --out {tmp}/x.npz", "labels = '0,10'; give classes from 0 to 9"),
        ("sample {run} --labels=-1 --out {tmp}/x.npz", "labels = '-1'; give classes from 0 to 9"),
        ("sample {run} --labels three --out {tmp}/x.npz", "labels = 'three'; give classes from 0 to 9"),
        ("sample {run} --labels 1, --out {tmp}/x.npz", "labels = '1,'; give classes from 0 to 9"),
        ("sample {run} --out {tmp}/x.jpg", "its name must end in .png or .npz"),
        ("sample {run} --out {tmp}/none/x.png", "there is no directory"),
        ("sample {run} --out {tmp}/directory.npz", "is a directory; give a file in it"),
        ("evaluate {tmp}", "holds no checkpoint.json"),
        ("evaluate {run} --steps 0", "steps = 0; it must be 1 or more"),
        ("evaluate {run} --seed=-1", "seed = -1; it must not be negative"),
        ("evaluate {run} --out {tmp}/none/report.json", "there is no directory"),
        ("evaluate {run} --out {tmp}/report.txt", "its name must end in .json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, said, run, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "directory.npz").mkdir()
    names = {"run": run, "tmp": tmp_path, "new": tmp_path / "new", "file": tmp_path / "file"}
    made = {f.__name__: f(run, tmp_path) for f in (truncated, unrecorded, misrecorded) if f.__name__ in words}
    assert cli.main(words.format(**names, **made).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_an_unknown_scale_is_refused(run, monkeypatch, capsys):
    monkeypatch.setenv("EDMNOTES_SCALE", "huge")
    assert cli.main(["sample", str(run)]) == 2
    assert "EDMNOTES_SCALE is 'huge'; it must be one of smoke, laptop, gpu" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["sample"], ["fly"], ["sample", "x", "--n", "many"], []])
def test_words_that_do_not_parse_are_refused_with_help(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    assert "--help" in capsys.readouterr().err


def test_help_names_what_there_is(capsys):
    help_of = {}
    for command in ("", "train", "sample", "evaluate"):
        with pytest.raises(SystemExit) as stopped:
            cli.main([*command.split(), "--help"])
        assert stopped.value.code == 0
        help_of[command] = capsys.readouterr().out
    assert all(command in help_of[""] for command in help_of)
    assert all(name in help_of["train"] for name in [*data.DATASETS, *presets.PRESETS])
    assert all(word in help_of["sample"] for word in ("--n", "--steps", "--seed", "--labels", "--out", ".png", ".npz"))
    assert cli.SHARED in help_of["evaluate"]


def test_the_package_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "edmnotes", "sample", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no checkpoint: 'nowhere'")
    assert done.stdout == ""
