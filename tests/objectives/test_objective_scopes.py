"""Bits of all the data beside bits of each datum: whose signal holds what, by enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal

import fastvi
from fastvi.objectives import ELBO, IWLB, VIMCO, Latent, Reinforce, Term

K, B, N = 2, 2, 6
BITS = list(itertools.product([0.0, 1.0], repeat=K + K * B))


class Scopes:
    """A bit that all data share, and one for each datum, whose chance depends on the shared one."""

    def __init__(self) -> None:
        numbers = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        self.parameters = [number.clone().requires_grad_() for number in numbers]

    def latents(self, bits: tuple[float, ...]) -> list[Latent]:
        shared, alone, on = self.parameters[:3]
        one = torch.tensor(bits[:K], dtype=torch.float64)
        each = torch.tensor(bits[K:], dtype=torch.float64).reshape(K, B)
        q_one = Bernoulli(logits=shared)
        q_each = Bernoulli(logits=(alone + on * one)[:, None] * torch.tensor([1.0, -0.5]))
        return [
            Latent(
                "one",
                one,
                q_one.log_prob(one),
                reparameterised=False,
                parents=(),
                distribution=q_one,
            ),
            Latent(
                "each",
                each,
                q_each.log_prob(each),
                reparameterised=False,
                parents=("one",),
                distribution=q_each,
            ),
        ]

    def terms(self, z: dict[str, Tensor]) -> dict:
        p_one, p_each, on = self.parameters[3:]
        mean = on * z["each"] + z["one"][:, None]
        return {
            "one": Term(Bernoulli(logits=p_one), depends_on=("one",)),
            "each": Term(Bernoulli(logits=p_each).log_prob(z["each"]), depends_on=("each",)),
            "x": Normal(mean, 1.0).log_prob(torch.tensor([0.5, -1.0]).double()),
        }

    def probability(self, latents: list[Latent]) -> Tensor:
        return torch.stack([latent.log_q.sum() for latent in latents]).sum().exp()

    def weighted(self, latents: list[Latent]) -> Tensor:
        """By hand: N/B in front of what is of each datum."""
        one, each = latents
        terms = self.terms({"one": one.value, "each": each.value})
        prior = terms["one"].value.log_prob(one.value)
        local = terms["each"].value + terms["x"] - each.log_q
        return (prior - one.log_q + N / B * local.sum(1)).mean()


CASES = [
    pytest.param(lambda: Reinforce(K, kl="monte_carlo"), id="no baseline"),
    pytest.param(lambda: Reinforce(K, "leave_one_out", kl="monte_carlo"), id="leave one out"),
    pytest.param(lambda: Reinforce(K, {"one": None, "each": "leave_one_out"}), id="closed forms"),
    pytest.param(lambda: Reinforce(K, kl="monte_carlo", chunk_size=1), id="in chunks"),
]


@pytest.mark.parametrize("make", CASES)
def test_unbiased(make):
    setting, objective = Scopes(), make()
    exact = torch.zeros((), dtype=torch.float64)
    expected = torch.zeros((), dtype=torch.float64)
    for bits in BITS:
        latents = setting.latents(bits)
        p = setting.probability(latents)
        exact = exact + p * setting.weighted(latents)
        bound = objective.bound(latents, setting.terms, num_data=N)
        assert bound.shape == (B,)
        expected = expected + p.detach() * N / B * bound.sum()
    torch.testing.assert_close(expected, exact, rtol=0, atol=1e-10)
    for got, grad in zip(
        torch.autograd.grad(expected, setting.parameters, retain_graph=True),
        torch.autograd.grad(exact, setting.parameters),
        strict=True,
    ):
        torch.testing.assert_close(got, grad, rtol=0, atol=1e-10)


# ---- what a chunk holds -------------------------------------------------------------------------
@pytest.mark.parametrize(
    "make",
    [lambda c: IWLB(64, chunk_size=c), lambda c: ELBO(64, chunk_size=c),
     lambda c: VIMCO(64, chunk_size=c), lambda c: Reinforce(64, chunk_size=c)],
    ids=["IWLB", "ELBO", "VIMCO", "Reinforce"],
)  # fmt: skip
def test_a_chunk_keeps_its_own_activations_only(make):
    """Of the wide layer, the graph after the forward pass holds a chunk; without chunks, all."""
    weight = torch.randn(3, 500, requires_grad=True)
    q = Independent(Normal(torch.zeros(8, 3, requires_grad=True), 1.0), 1)

    def kept(chunk_size: int | None) -> int:
        wide = []

        def pack(tensor: Tensor) -> Tensor:
            if tensor.shape[-1] == 500 and tensor.ndim == 3:
                wide.append(tensor.numel())
            return tensor

        latent = Latent.draw("z", q, 64, path=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            bound = make(chunk_size).bound([latent], lambda z: -(z["z"] @ weight).tanh().sum(-1))
        forward = sum(wide)
        bound.mean().backward()
        return forward

    assert kept(None) == 64 * 8 * 500
    # That of the last chunk is kept for the backward pass, which needs it first.
    assert kept(4) <= 4 * 8 * 500


@pytest.mark.parametrize(
    "make",
    [IWLB, ELBO, VIMCO, Reinforce, lambda k, **o: IWLB(k, "rws", **o)],
    ids=["IWLB", "ELBO", "VIMCO", "Reinforce", "wake-sleep"],
)
def test_as_many_samples_at_a_time_as_the_memory_allows(make):
    """The same bound and gradient; few samples at a time where memory is short, all where not."""
    weight = torch.randn(3, 500, requires_grad=True)
    q = Independent(Normal(torch.zeros(8, 3, requires_grad=True), 1.0), 1)
    latent = Latent.draw("z", q, 64, path=True)
    sizes = []

    def log_joint(z: dict[str, Tensor]) -> Tensor:
        sizes.append(len(z["z"]))
        return -(z["z"] @ weight).tanh().sum(-1)

    def run(objective) -> tuple[Tensor, ...]:
        bound = objective.bound([latent], log_joint)
        return bound, *torch.autograd.grad(bound.sum(), weight, retain_graph=True)

    whole = run(make(64))
    for budget, fits in ((2**20, False), (2**30, True)):
        objective = make(64, chunk_size="auto", memory_budget=budget)
        torch.testing.assert_close(run(objective), whole)
        sizes.clear()
        run(objective)
        # It was tried in the first step.
        assert sizes[0] == 64 if fits else 1 < sizes[0] < 64
    # A smaller budget is asked for with "auto" alone.
    with pytest.raises(ValueError, match="memory_budget to be positive and given with"):
        make(64, memory_budget=2**20)


def test_dropout_draws_the_same_masks_in_both_passes():
    weight = torch.ones(3, requires_grad=True)
    masks = []

    def log_joint(z: dict[str, Tensor]) -> Tensor:
        mask = torch.bernoulli(torch.full_like(z["z"], 0.5))
        masks.append(mask)
        return -(mask * z["z"] * weight).sum(-1)

    q = Independent(Normal(torch.zeros(3), 1.0), 1)
    ELBO(4, chunk_size=2).bound([Latent.draw("z", q, 4)], log_joint).sum().backward()
    # Two chunks, of which the last needs no second pass.
    assert len(masks) == 3
    assert torch.equal(masks[0], masks[2]) and not torch.equal(masks[0], masks[1])


# ---- drawing ------------------------------------------------------------------------------------
def test_a_fused_draw_is_used_where_it_serves(monkeypatch: pytest.MonkeyPatch):
    calls = []
    draw = fastvi.distributions.Normal._draw
    monkeypatch.setattr(
        fastvi.distributions.Normal, "_draw", lambda *args: calls.append(1) or draw(*args)
    )
    q = fastvi.distributions.Normal(torch.zeros(5, requires_grad=True), 1.0)
    latent = Latent.draw("z", q, 3)
    assert len(calls) == 1 and latent.reparameterised
    # A kernel hides the derivative of one result by the other.
    latent = Latent.draw("z", q, 3, path=True)
    assert len(calls) == 1
    torch.testing.assert_close(latent.log_q_path(), latent.log_q)


class Foreign(Normal):
    """A distribution of others, with methods of the names of ours and other arguments."""

    def rsample_and_log_prob(self, shape: torch.Size = ()):
        raise AssertionError("not ours")


@pytest.mark.parametrize("path", [False, True])
@pytest.mark.parametrize("event", [0, 1])
@pytest.mark.parametrize("wrap", [Independent, fastvi.distributions.Independent],
                         ids=["torch", "fastvi"])  # fmt: skip
def test_a_method_of_others_is_not_taken_for_ours(path: bool, event: int, wrap: type):
    q = Foreign(torch.zeros(5, requires_grad=True), 1.0)
    latent = Latent.draw("z", wrap(q, event), 3, path=path)
    assert latent.log_q.shape == (3, 5)[: 2 - event]
    torch.testing.assert_close(latent.log_q_path(), latent.log_q)


# ---- a network baseline -------------------------------------------------------------------------
@pytest.mark.slow
def test_a_baseline_of_the_data_is_trained_and_lowers_the_noise():
    """Data of very different evidence: 5 times less noise, the number of docs/design.md."""
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 32)[:, None]
    logits = nn.Linear(1, 1)
    guide = fastvi.guides.BernoulliGuide(logits)

    def model(z: Tensor, x: Tensor) -> Tensor:
        return -((x[:, 0] - z[..., 0]) ** 2)

    network = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(0))
    objective = Reinforce(1, network, kl="monte_carlo")
    svi = fastvi.SVI(model, guide, lambda p: torch.optim.Adam(p, lr=0.02), objective)
    svi.fit(x, epochs=300)

    def noise(objective: Reinforce) -> float:
        svi = fastvi.SVI(model, guide, torch.optim.SGD([*logits.parameters(),
                         *objective.parameters()], lr=0.0), objective)  # fmt: skip
        grads = []
        for _ in range(300):
            svi.step(x)
            grads.append(torch.cat([p.grad.flatten() for p in logits.parameters()]))
        return torch.stack(grads).var(0).sum().item()

    assert noise(Reinforce(1, kl="monte_carlo")) > 3.0 * noise(objective)
