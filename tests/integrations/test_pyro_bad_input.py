"""Trace_IWLB refuses what it cannot bound, and says which site and what to do."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

pyro = pytest.importorskip("pyro")

import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402

import fastvi  # noqa: E402
from fastvi.integrations.pyro import Trace_IWLB, accelerate  # noqa: E402

X = torch.tensor([0.3, -0.4, 1.1])


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


OPTIONS = [
    (dict(), "exactly one of num_samples, num_particles and objective, got None, None and None"),
    (dict(num_samples=2, num_particles=2), "exactly one of num_samples, num_particles and obj"),
    (
        dict(objective=fastvi.objectives.IWLB(2), estimator="stl", alpha=0.0),
        "estimator and alpha to be given to the objective, IWLB, got them beside it",
    ),
    (
        dict(objective=fastvi.objectives.ELBO(2, "analytic")),
        "kl of ELBO to be 'auto' or 'monte_carlo'",
    ),
    (dict(objective=fastvi.ELBOLoss(2, beta=0.5)), "beta of ELBOLoss to be 1, got 0.5; in a prog"),
    (
        dict(objective=fastvi.objectives.Reinforce(2, fastvi.objectives.DecayingAverage())),
        "baseline of Reinforce to be None or 'leave_one_out'",
    ),
    (dict(num_samples=2, chunk_size="all"), "chunk_size to be one of 'auto', got 'all'"),
    (dict(num_samples=0), "num_samples to be from 1 to"),
    (dict(num_samples=2, estimator="reinforce"), "estimator to be one of 'iwae'"),
    (dict(num_samples=2, estimator="rws", alpha=0.5), "alpha to be 0 for estimator 'rws'"),
    (dict(num_samples=2, alpha=float("nan")), "alpha to be finite"),
    (dict(num_samples=2, chunk_size=3), "chunk_size to be at most num_samples, 2, got 3"),
]


@pytest.mark.parametrize("options,message", OPTIONS, ids=[message for _, message in OPTIONS])
def test_options(options: dict, message: str):
    with pytest.raises(ValueError, match=f"Trace_IWLB: expected {message}"):
        Trace_IWLB(**options)


def test_types_of_options():
    with pytest.raises(TypeError, match="num_samples to be an int, got float"):
        Trace_IWLB(2.0)
    with pytest.raises(TypeError, match="objective to be one of fastvi.objectives, such as IWLB"):
        Trace_IWLB(objective=torch.nn.MSELoss())
    with pytest.raises(TypeError, match="takes from 1 to 3 positional arguments"):
        Trace_IWLB(2, "dreg", 0.5)
    with pytest.raises(RuntimeError, match="group needs torch.distributed to be initialised"):
        Trace_IWLB(2, group=object()).loss(model, guide, X)


def test_latents_that_differ_are_named():
    def empty(x: Tensor) -> None:
        pass

    def more(x: Tensor) -> None:
        guide(x)
        pyro.sample("extra", dist.Normal(0.0, 1.0))

    def observed(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0))

    elbo = Trace_IWLB(2, max_plate_nesting=1)
    with pytest.raises(ValueError, match="every latent of the model, but it has no site 'z'"):
        elbo.loss(model, empty, X)
    with pytest.raises(ValueError, match="it has no latent site 'extra'; add it .*is_auxiliary"):
        elbo.loss(model, more, X)
    with pytest.raises(ValueError, match="it has no latent site 'x'; the model observes it"):
        elbo.loss(model, observed, X)


def test_shapes_that_differ_are_named():
    def of_size(size: int):
        def program(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(len(x), size), 1.0).to_event(1))

        return program

    with pytest.raises(ValueError, match="disagree at site 'z'"):
        Trace_IWLB(2).loss(of_size(2), of_size(3), X)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_an_observation_outside_the_support_names_its_site(fused: bool):
    def bits(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("bits", dist.Bernoulli(logits=z), obs=x)

    with pytest.raises(ValueError, match="(?s)site 'bits'.*0.3"):
        Trace_IWLB(2, max_plate_nesting=1, fused=fused).loss(bits, guide, X)


def test_a_parameter_outside_its_constraint_is_refused():
    def negative(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, x))

    for fused in (True, False):
        with pytest.raises(ValueError, match="parameter scale.*to satisfy the constraint"):
            Trace_IWLB(2, fused=fused).loss(model, negative, X)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_an_observation_outside_the_support_is_not_blamed_on_broadcasting(fused: bool):
    def counting(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("count", dist.Poisson(z.exp()), obs=torch.tensor([1.0, -1.0, 2.0]))

    for options in ({}, {"chunk_size": 2}, {"vectorize_particles": False}):
        with pytest.raises(ValueError, match="^Error while computing log_prob at site 'count'"):
            Trace_IWLB(3, fused=fused, **options).loss(counting, guide, X)


def counting(x: Tensor) -> None:
    t = pyro.sample("t", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("copies", t.numel()):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.5))


def of_t(x: Tensor) -> None:
    pyro.sample("t", dist.Normal(torch.zeros(2), 1.0).to_event(1))


@pytest.mark.parametrize(
    "options",
    [{}, {"max_plate_nesting": 1}, {"chunk_size": 3}, {"estimator": "iwae", "chunk_size": 2}],
    ids=["by default", "nesting given", "in chunks", "in chunks, the last of one"],
)
@pytest.mark.parametrize("used", [False, True], ids=["first call", "after another program"])
def test_a_plate_that_grows_with_the_samples_is_named(options: dict, used: bool):
    elbo = Trace_IWLB(5, **options)
    if used:
        elbo.loss(model, guide, X)
    at_once = options.get("chunk_size", 5)
    message = (
        rf"size of plate 'copies' not to depend .* got 2 for one and {2 * at_once} for {at_once} "
        r"\(at site 'y'"
    )
    with pytest.raises(ValueError, match=message):
        elbo.loss(counting, of_t, X)


def test_a_plate_that_grows_with_the_samples_later_is_named():
    """The program is the same object, and its plate has had this very size for other data."""

    def sometimes(x: Tensor) -> None:
        t = pyro.sample("t", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("copies", t.numel() if len(x) == 3 else len(x)):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.5))

    elbo = Trace_IWLB(5)
    exact = -dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.5)).item()
    for size in (4, 7, 4):  # batches need not be of one size
        loss = elbo.loss(sometimes, of_t, torch.zeros(size))
        assert loss == pytest.approx(size * exact, rel=1e-5)
    with pytest.raises(ValueError, match="size of plate 'copies' not to depend"):
        elbo.loss(sometimes, of_t, X)


def test_a_loop_over_a_plate_that_grows_with_the_samples_is_named():
    def looped(x: Tensor) -> None:
        t = pyro.sample("t", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        for i in pyro.plate("copies", t.shape[0]):
            pyro.sample(f"y{i}", dist.Normal(0.0, 1.0), obs=torch.tensor(0.5))

    with pytest.raises(ValueError, match="size of plate 'copies' .* got 2 for one and 5 for 5"):
        Trace_IWLB(5).loss(looped, of_t, X)


def test_plates_that_take_the_samples_for_data_are_told_by_their_broadcasting():
    def by_row(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", z.shape[0]):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def of_z(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    for options in ({}, {"chunk_size": 5}, {"max_plate_nesting": 1}):
        with pytest.raises(ValueError, match="(?s)not for 5 at once.*plate.'data'"):
            Trace_IWLB(5, **options).loss(by_row, of_z, X)
    assert Trace_IWLB(5, vectorize_particles=False).loss(by_row, of_z, X) > 0


def test_plates_deeper_than_was_said():
    with pytest.raises(ValueError, match="max_plate_nesting to be at least 1, .* got 0"):
        Trace_IWLB(5, max_plate_nesting=0).loss(model, guide, X)


def test_one_objective_takes_programs_that_nest_otherwise():
    def deeper(x: Tensor) -> None:
        with pyro.plate("rows", 2, dim=-2):
            model(x)

    def deeper_guide(x: Tensor) -> None:
        with pyro.plate("rows", 2, dim=-2):
            guide(x)

    elbo = Trace_IWLB(4)
    for first, second in ((model, guide), (deeper, deeper_guide), (model, guide)):
        torch.manual_seed(0)
        value = elbo.loss(first, second, X)
        torch.manual_seed(0)
        assert value == Trace_IWLB(4).loss(first, second, X)
    # What it has run is not part of it.
    assert pickle.loads(pickle.dumps(elbo)).num_particles == 4


def test_a_program_that_differs_between_the_passes_is_refused():
    calls = []

    def changing(x: Tensor) -> None:
        calls.append(1)
        weight = pyro.param("weight", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(weight * x + len(calls), 1.0))

    loss = Trace_IWLB(4, chunk_size=2, max_plate_nesting=1).differentiable_loss(model, changing, X)
    with pytest.raises(RuntimeError, match="the same values for the same samples"):
        loss.backward()


def test_nan_is_not_hidden():
    def nan(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("x", z * float("nan"))

    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="NaN"):
        loss = Trace_IWLB(3).loss(nan, guide, X)
    assert loss != loss


def test_an_impossible_datum_gives_infinity_and_finite_gradients():
    def impossible(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("x", torch.where(x > 1.0, -torch.inf, -z.square()))

    def trained(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    for estimator in ("dreg", "iwae", "rws"):
        loss = Trace_IWLB(4, estimator).loss_and_grads(impossible, trained, X)
        assert loss == float("inf")
        grad = pyro.get_param_store()._params["loc"].grad
        assert bool(torch.isfinite(grad).all()) and grad[2] == 0 and grad[0] != 0
        pyro.clear_param_store()


def test_names_that_cannot_be_swapped():
    with pytest.raises(ValueError, match="accelerate: expected names to be of .*got 'Gamma'"):
        accelerate("Gamma")


def test_a_guide_that_is_a_messenger_has_the_total_derivative_only():
    from pyro.infer.autoguide import AutoNormalMessenger

    messenger = AutoNormalMessenger(model)
    with pytest.raises(ValueError, match="'iwae' for a guide that is a messenger"):
        Trace_IWLB(3).loss_and_grads(model, messenger, X)
    assert Trace_IWLB(3, "iwae").loss_and_grads(model, messenger, X) < 20
    assert isinstance(messenger, poutine.messenger.Messenger)
