"""The training end to end at a few steps, and that it resumes."""

import subprocess
import sys

import pytest
import torch
from support.processes import ROOT
from torch import nn

from training.progress import Learner, rate_at, train

FEW = (
    "--autoencoder-steps",
    "2",
    "--steps",
    "2",
    "--unconditional-steps",
    "1",
    "--decoder-steps",
    "1",
    "--scenes",
    "60",
    "--quiet",
)


def run(folder, *arguments):
    command = [sys.executable, "-m", "scripts.demo.train", "--run", folder / "run", *FEW, *map(str, arguments)]
    environment = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=400)


def learner():
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    return Learner(module, [torch.optim.AdamW(module.parameters(), lr=0.1)], average=0.9)


def loss_of(module):
    def loss_at(step):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        return (module(x) - x[:, :2]).square().mean()

    return loss_at


def test_resumed_training_is_exactly_the_uninterrupted_one(tmp_path):
    whole, half, rest = learner(), learner(), learner()
    train(whole, loss_of(whole.module), 8, tmp_path / "whole.pt", quiet=True)

    def killed(step):
        if step == 5:
            raise KeyboardInterrupt
        return loss_of(half.module)(step)

    train(half, loss_of(half.module), 0, tmp_path / "half.pt", quiet=True)
    with pytest.raises(KeyboardInterrupt):
        train(half, killed, 8, tmp_path / "half.pt", quiet=True)
    half.save(tmp_path / "half.pt")
    train(rest, loss_of(rest.module), 8, tmp_path / "half.pt", quiet=True)
    assert rest.step == whole.step == 8
    for name, weight in whole.module.state_dict().items():
        assert torch.equal(weight, rest.module.state_dict()[name])
        assert torch.equal(whole.averaged[name], rest.averaged[name])


def test_loss_that_is_not_finite_stops_the_training(tmp_path):
    with pytest.raises(FloatingPointError, match="x: the loss is nan at step 0"):
        train(learner(), lambda step: torch.tensor(float("nan")), 3, tmp_path / "x.pt", quiet=True)
    assert not (tmp_path / "x.pt").exists()


def test_learning_rate():
    assert [rate_at(step, 1000) for step in (0, 49, 99, 500, 750)] == [0.01, 0.5, 1.0, 1.0, 1.0]
    assert rate_at(875, 1000) == 0.5 and rate_at(999, 1000) == 1 / 250
    # Before the fall the number of steps makes no difference, so that a run may be made longer.
    assert [rate_at(step, 1000) for step in range(700)] == [rate_at(step, 5000) for step in range(700)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two workers that stopped before the end and was resumed by one."""
    folder = tmp_path_factory.mktemp("training")
    first = run(folder, "--workers", 2)
    assert first.returncode == 0, first.stderr
    second = run(folder, "--workers", 1, "--steps", 3, "--output", folder / "checkpoint")
    assert second.returncode == 0, second.stderr
    return folder


def test_a_stopped_run_resumes(trained):
    steps = {file.stem: torch.load(file, weights_only=True)["step"] for file in (trained / "run").glob("*.pt")}
    assert steps == {"autoencoder": 2, "conditional": 3, "unconditional": 1, "decoder": 1}
    assert [line.split()[0] for line in (trained / "run/conditional.log").read_text().splitlines()] == ["2", "3"]


def test_output_that_exists(trained):
    refused = run(trained, "--output", trained / "checkpoint")
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert f"scripts.demo.train: error: {trained / 'checkpoint'} exists; remove it first" in refused.stderr
