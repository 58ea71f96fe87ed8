"""The judging protocol, on sets of digits whose verdict is known beforehand."""

import json

import pytest
import torch
from safetensors.torch import load_file

from edmnotes import data, judging


@pytest.fixture(scope="module")
def digits():
    return data.digits()


@pytest.fixture(scope="module")
def held_out_report(digits):
    return judging.judge_digits(digits.held_out.x, digits.held_out.labels)


def test_the_committed_judge_recognises_the_held_out_digits(digits):
    """At least 97 %, and what its provenance says, measured anew."""
    provenance = json.loads((judging.MODEL / "provenance.json").read_text())
    judge = judging.load()
    for part, key in ((digits.held_out, "held_out_accuracy"), (digits.train, "train_accuracy")):
        measured = judging.recognised(judge, part.x, part.labels).double().mean()
        assert measured == pytest.approx(provenance[key], abs=1e-9)
        assert measured >= 0.97
    assert provenance["seed"] == judging.SEED
    assert provenance["network"] == judge.config


def test_the_recipe_makes_such_a_judge_again(digits, tmp_path, monkeypatch):
    """All of it but the calibration, in which a judge more or less changes nothing here."""
    monkeypatch.setattr(judging, "calibration", lambda: [1.0, 1.5, 0.5])
    judging.remake(tmp_path)
    made, stored = (json.loads((place / "provenance.json").read_text()) for place in (tmp_path, judging.MODEL))
    assert made["held_out_accuracy"] == pytest.approx(stored["held_out_accuracy"], abs=0.015)
    assert made["calibration"]["mean"] == 1
    assert made.keys() == stored.keys()
    remade = judging.load()
    remade.load_state_dict(load_file(tmp_path / "judge.safetensors"))
    right = judging.recognised(remade, digits.held_out.x, digits.held_out.labels).double().mean()
    assert right == pytest.approx(made["held_out_accuracy"], abs=1e-9)


def test_a_judge_that_is_too_weak_is_not_kept(tmp_path, monkeypatch):
    recipe = judging.train_judge
    monkeypatch.setattr(judging, "train_judge", lambda digits: recipe(digits, steps=2))
    with pytest.raises(RuntimeError, match="must be 97 %"):
        judging.remake(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_a_seed_decides_the_judge_and_global_random_state_is_left_alone(digits):
    before = torch.get_rng_state()
    one, same, other = (judging.train_judge(digits.train, steps=3, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_held_out_digits_get_a_perfect_report(digits, held_out_report):
    r = held_out_report
    assert r.n == len(digits.held_out)
    assert r.accuracy == r.judge_accuracy >= 0.97
    assert r.frechet == pytest.approx(0, abs=1e-6)
    assert r.nn_ratio == 1
    assert len(r.real_to_real) >= 20


def test_a_copying_generator_passes_all_but_the_nearest_neighbours(digits, held_out_report):
    """Training digits of the same classes: recognised, inside real-to-real, and at distance 0 from the training set."""
    chosen = torch.cat([(digits.train.labels == c).nonzero()[::3, 0][:43] for c in range(10)])  # of every writer
    copies = judging.judge_digits(digits.train.x[chosen], digits.train.labels[chosen], splits=20)
    assert copies.accuracy > 0.97
    assert copies.frechet < copies.real_to_real_90
    assert copies.nn_ratio == 0
    assert held_out_report.copying_nn_ratio == 0
    assert held_out_report.copying_accuracy > 0.97
    low, high = min(held_out_report.real_to_real), max(held_out_report.real_to_real)
    assert low < held_out_report.copying_frechet < high


def test_fresh_real_digits_pass_and_the_bar_is_tight(digits):
    """Unseen digits pass against other unseen ones; with a fifth of the contrast taken off they fail."""
    x, labels = digits.held_out.x, digits.held_out.labels
    chosen = torch.cat([(labels == c).nonzero()[::2, 0][:21] for c in range(10)])
    plain = judging.judge_digits(x[chosen], labels[chosen], splits=40)
    pale = judging.judge_digits(0.8 * (x[chosen] + 1) - 1, labels[chosen], splits=40)
    assert plain.frechet < plain.real_to_real_90 < pale.frechet
    assert pale.accuracy > 0.97  # what recognition alone would not see


def test_a_collapsed_generator_is_recognised_but_far(digits):
    """The mean digit of each class, again and again: right, not varied."""
    labels = digits.held_out.labels
    means = torch.stack([digits.train.x[digits.train.labels == c].mean(0) for c in range(10)])
    report = judging.judge_digits(means[labels], labels, splits=20)
    assert report.accuracy > 0.9
    assert report.frechet > 3 * report.real_to_real_90


def test_noise_and_wrong_labels_fail(digits, held_out_report):
    x, labels = digits.held_out.x, digits.held_out.labels
    noise = judging.judge_digits(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), labels, splits=20)
    assert noise.accuracy < 0.3
    assert noise.frechet > 3 * noise.real_to_real_90
    assert noise.nn_ratio > 2
    order = labels.argsort(stable=True)
    wrong = judging.judge_digits(x[order], labels[order].roll(45), splits=20)
    assert wrong.accuracy < 0.1
    assert wrong.frechet == pytest.approx(held_out_report.frechet, abs=1e-6)


def test_real_to_real_has_the_class_counts_of_the_samples(digits):
    """Sets drawn without regard to class are much farther apart; samples of one class are compared with that class."""
    judge, everyone = judging.load(), torch.cat([digits.train.x, digits.held_out.x])
    labels = torch.cat([digits.train.labels, digits.held_out.labels])
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([3, 0, 5, 7, 1, 2, 4, 6, 8, 9])
    first, second = judging._disjoint(labels, counts, 2, generator)
    assert torch.equal(labels[first].bincount(minlength=10), counts)
    assert torch.equal(labels[second].bincount(minlength=10), counts)
    assert len(torch.cat([first, second]).unique()) == 2 * counts.sum()
    assert torch.equal(labels[judging._with_replacement(labels, counts, generator)].bincount(), counts)

    sevens = digits.held_out.labels == 7
    report = judging.judge_digits(digits.held_out.x[sevens], digits.held_out.labels[sevens], splits=20, judge=judge)
    assert report.frechet == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        features = judge.features(everyone)
    shuffled = [torch.randperm(len(features), generator=generator)[:890].reshape(2, 445) for _ in range(20)]
    careless = sorted(judging.metrics.frechet_distance(features[a], features[b]) for a, b in shuffled)[10]
    matched = judging.judge_digits(digits.held_out.x, digits.held_out.labels, splits=20).real_to_real_median
    assert careless > 2 * matched


def test_the_judge_s_own_training_digits_bias_the_bar_little():
    """Provenance holds ten judges or more; their mean ratio is 1 within its error. One is made anew, in short."""
    stored = json.loads((judging.MODEL / "provenance.json").read_text())["calibration"]
    assert len(stored["ratios"]) >= 10
    assert abs(stored["mean"] - 1) < 2 * stored["standard_error"] < 0.25
    (ratio,) = judging.calibration(1, splits=20, steps=100)
    assert 0.5 < ratio < 2


def test_a_seed_decides_the_splits(digits):
    x, labels = digits.held_out.x, digits.held_out.labels
    one, same, other = (judging.judge_digits(x, labels, splits=15, seed=s) for s in (0, 0, 1))
    assert one == same
    assert one.real_to_real != other.real_to_real
    assert one.real_to_real_median == pytest.approx(other.real_to_real_median, rel=0.3)


def test_report_reads_and_stores(held_out_report):
    r = held_out_report
    below = sum(value <= r.real_to_real_90 for value in r.real_to_real)
    assert below == pytest.approx(0.9 * len(r.real_to_real), abs=1)
    stored = json.loads(json.dumps(r.to_json()))
    assert stored["real_to_real_90"] == r.real_to_real_90
    assert stored["real_to_real"] == list(r.real_to_real)
    for shown in (f"{r.accuracy:.1%}", f"{r.copying_frechet:.2f}", f"{r.real_to_real_90:.2f}", "445 digits"):
        assert shown in str(r)


def test_bad_input_is_refused(digits):
    x, labels = digits.held_out.x, digits.held_out.labels
    for samples, wanted, message in [
        (x[:, 0], labels, r"samples has shape \(445, 8, 8\)"),
        (x[:1], labels[:1], r"samples has shape \(1, 1, 8, 8\)"),
        (x / 0, labels, "samples holds .* not finite"),
        (x, labels[:-1], r"labels must be int64, one a sample, \(445,\)"),
        (x, labels.float(), "labels must be int64"),
        (x, labels + 1, "labels run from 1 to 10; digits are 0 to 9"),
        (x, labels - 1, "labels run from -1"),
        (x[:50], torch.full((50,), 8), "samples holds 50 of class 8, but only 43"),
    ]:
        with pytest.raises(ValueError, match=message):
            judging.judge_digits(samples, wanted)
    with pytest.raises(ValueError, match="splits is 0"):
        judging.judge_digits(x, labels, splits=0)
    with pytest.raises(ValueError, match="no labels"):
        judging.train_judge(data.Labelled(x))
