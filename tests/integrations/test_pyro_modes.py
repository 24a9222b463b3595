"""Trace_IWLB, and a BoundModule around it, in every mode of autograd."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

pyro = pytest.importorskip("pyro", reason="Pyro is not installed")
import pyro.distributions as dist  # noqa: E402
from evaluation_faces import MODES  # noqa: E402
from pyro import poutine  # noqa: E402
from quick import quick_in  # noqa: E402

from fastvi.integrations.pyro import Trace_IWLB, accelerate  # noqa: E402

N = 6
KEPT = torch.arange(N) % 3 > 0


class Program(nn.Module):
    """Two layers of numbers, or a bit above a number, and a missing datum."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.slope = nn.Parameter(torch.tensor(0.4))
        self.locs = nn.ParameterList(torch.randn(N) for _ in range(2))
        self.scale = nn.Parameter(torch.tensor(0.6))

    def model(self, x):
        with pyro.plate("data", N):
            z = torch.zeros(())
            if self.kind == "bits":
                z = pyro.sample("b", dist.Bernoulli(torch.tensor(0.3)))
            if self.kind in ("layers", "events"):
                z = pyro.sample("y", self._of(dist.Normal(torch.zeros(N, 2), 1.0)))
                z = z.mean(-1)
            z = pyro.sample("z", dist.Normal(z * self.slope, 1.0))
            with poutine.mask(mask=KEPT):
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def _of(self, fn):
        return fn.to_event(1)

    def guide(self, x):
        scale = self.scale.exp()
        with pyro.plate("data", N):
            above = torch.zeros(())
            if self.kind == "bits":
                above = pyro.sample("b", dist.Bernoulli(logits=self.locs[0]))
            if self.kind in ("layers", "events"):
                loc = self.locs[0][:, None] * torch.ones(2)
                above = pyro.sample("y", self._of(dist.Normal(loc, scale))).mean(-1)
            if self.kind == "events":
                above = above.detach()
            pyro.sample("z", dist.Normal(self.locs[1] + self.slope * above, scale))


HOW = {
    "whole": {},
    "chunks": {"chunk_size": 2},
    "one by one": {"vectorize_particles": False},
    "Pyro's densities": {"fused": False},
}
ESTIMATORS = ["dreg", "iwae", "stl", "rws", "rws_dreg"]
X = torch.where(KEPT, torch.linspace(-1, 1, N), math.nan)
PROGRAMS = [
    *((kind, estimator) for kind in ("numbers", "layers", "events") for estimator in ESTIMATORS),
    *(("bits", "iwae"), ("bits", "rws")),
]
on_programs = pytest.mark.parametrize(
    ("kind", "estimator"),
    quick_in(
        {f"{kind}-{estimator}": (kind, estimator) for kind, estimator in PROGRAMS},
        *(f"numbers-{estimator}" for estimator in ESTIMATORS),
        *("layers-dreg", "events-dreg", "bits-iwae", "bits-rws"),
    ),
)


@pytest.mark.parametrize("how", list(HOW))
@on_programs
def test_every_mode_gives_the_value_of_grad_mode(kind: str, estimator: str, how: str):
    program = Program(kind)

    def measured(function: str) -> torch.Tensor:
        torch.manual_seed(3)
        bound = Trace_IWLB(5, estimator, **HOW[how])
        return torch.as_tensor(getattr(bound, function)(program.model, program.guide, X)).detach()

    expected = measured("differentiable_loss")
    assert bool(expected.isfinite())
    for mode in MODES.values():
        for function in ("loss", "differentiable_loss"):
            with mode():
                torch.testing.assert_close(measured(function), expected, rtol=0, atol=0)
    with torch.inference_mode(), accelerate():
        torch.testing.assert_close(measured("loss"), expected, rtol=1e-6, atol=1e-6)


def test_programs_made_in_inference_mode():
    expected = None
    for mode in (torch.enable_grad, torch.inference_mode):
        with mode():
            program, x = Program("layers"), X.clone()
            torch.manual_seed(3)
            found = Trace_IWLB(4).loss(program.model, program.guide, x)
        expected = found if expected is None else expected
        assert found == expected


@pytest.mark.parametrize("how", list(HOW))
def test_lightning_validates_tests_and_predicts(how: str, tmp_path):
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
    from fastvi.integrations.lightning import BoundModule

    program = Program("layers")
    module = BoundModule(Trace_IWLB(4, **HOW[how])(program.model, program.guide))
    loader = torch.utils.data.DataLoader(X.repeat(2), batch_size=N)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for inference_mode in (True, False):
            trainer = lightning.Trainer(
                accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1,
                enable_progress_bar=False, enable_model_summary=False, barebones=False,
                default_root_dir=tmp_path, inference_mode=inference_mode,
            )  # fmt: skip
            for name, run in (("held_out_bound", trainer.validate), ("test_bound", trainer.test)):
                (found,) = run(module, loader, verbose=False)
                assert math.isfinite(found[name]), name
            predicted = trainer.predict(module, loader)
            assert len(predicted) == 2 and all(math.isfinite(float(x)) for x in predicted)
