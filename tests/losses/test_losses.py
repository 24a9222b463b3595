"""The drop-in losses as a user meets them: arguments, modules, dtypes, transforms, compilers."""

from __future__ import annotations

import copy
import doctest
import math

import pytest
import torch
from linear_gaussian import DEVICES
from quick import quick_in
from torch import nn
from torch.testing import assert_close

import fastvi

B, D, F = 5, 3, 7
KEY = (23, 4)

# Every loss of the library, by the options that choose it.
LOSSES = {
    "iwae": lambda **o: fastvi.IWLBLoss(6, "iwae", **o),
    "stl": lambda **o: fastvi.IWLBLoss(6, "stl", **o),
    "dreg": lambda **o: fastvi.IWLBLoss(6, **o),
    "analytic": lambda **o: fastvi.ELBOLoss(4, **o),
    "monte_carlo": lambda **o: fastvi.ELBOLoss(4, "monte_carlo", beta=2.0, **o),
    "monte_carlo_stl": lambda **o: fastvi.ELBOLoss(4, "monte_carlo", estimator="stl", **o),
}


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


class Toy(nn.Module):
    """Two small networks and a Bernoulli likelihood."""

    def __init__(self, device="cpu", dtype=torch.float32, batch=B):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.encoder = nn.Linear(F, 2 * D)
        self.decoder = nn.Linear(D, F)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
        self.register_buffer("x", torch.rand(batch, F, generator=generator).round())
        self.register_buffer("key", torch.tensor(KEY))
        self.to(device, dtype)

    def posterior(self):
        return self.encoder(self.x).chunk(2, -1)

    def log_likelihood(self, z):
        return fastvi.ops.bernoulli_log_prob(self.x, self.decoder(z))

    def forward(self, criterion, **options):
        return criterion(*self.posterior(), self.log_likelihood, **{"key": self.key, **options})

    def gradients(self, loss):
        return torch.autograd.grad(loss, list(self.parameters()))


@pytest.fixture
def toy(device):
    return Toy(device)


# Breaks when a reduction is not over the batch alone, or the module does not pass it on.
@pytest.mark.parametrize("name", LOSSES)
def test_reductions_are_over_the_batch(toy, name):
    each = toy(LOSSES[name](reduction="none"))
    assert each.shape == (B,)
    assert_close(toy(LOSSES[name](reduction="sum")), each.sum())
    assert_close(toy(LOSSES[name]()), each.mean())


# Breaks when the module and the function drift apart in any option.
def test_modules_are_their_functions(toy):
    prior = (torch.full((D,), 0.3), torch.full((D,), -0.2))
    prior = tuple(t.to(toy.x.device) for t in prior)
    module = fastvi.IWLBLoss(3, "stl", prior=prior, reduction="sum").to(toy.x.device)
    expected = fastvi.iwlb_loss(
        *toy.posterior(),
        toy.log_likelihood,
        3,
        estimator="stl",
        prior=prior,
        reduction="sum",
        key=toy.key,
    )
    assert torch.equal(toy(module), expected)
    module = fastvi.ELBOLoss(
        3, "monte_carlo", beta=0.5, estimator="stl", prior=prior, reduction="sum"
    )
    expected = fastvi.elbo_loss(
        *toy.posterior(),
        toy.log_likelihood,
        3,
        kl="monte_carlo",
        beta=0.5,
        estimator="stl",
        prior=prior,
        reduction="sum",
        key=toy.key,
    )
    assert torch.equal(toy(module.to(toy.x.device)), expected)


# Breaks when an estimator changes the value as well as the gradient.
def test_the_value_does_not_depend_on_the_estimator(toy):
    losses = [toy(fastvi.IWLBLoss(6, estimator)) for estimator in ("iwae", "stl", "dreg")]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])


# Breaks when L_1 is not the ELBO, or the estimators of the two do not match.
@pytest.mark.parametrize(("iwlb", "elbo"), [("iwae", "iwae"), ("stl", "stl"), ("dreg", "stl")])
def test_one_sample_is_the_elbo(toy, iwlb, elbo):
    ours = toy(fastvi.IWLBLoss(1, iwlb))
    theirs = toy(fastvi.ELBOLoss(1, "monte_carlo", estimator=elbo))
    assert_close(ours, theirs)
    assert_close(toy.gradients(ours), toy.gradients(theirs))


# Breaks when the key is not the only source of randomness, or torch.manual_seed does not govern it.
def test_the_key_fixes_the_loss_and_the_seed_fixes_the_key(toy):
    criterion = fastvi.IWLBLoss(6)
    assert torch.equal(toy(criterion), toy(criterion))
    other = torch.tensor([99, 0], device=toy.x.device)
    assert not torch.equal(toy(criterion), toy(criterion, key=other))
    torch.manual_seed(1)
    first, second = toy(criterion, key=None), toy(criterion, key=None)
    torch.manual_seed(1)
    assert torch.equal(first, toy(criterion, key=None))
    assert not torch.equal(first, second)


# Breaks when a batch shape other than one dimension is flattened, dropped or mixed up.
@pytest.mark.parametrize("batch", [(), (1,), (2, 3)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_any_batch_shape(device, name, batch):
    loc = torch.linspace(-1, 1, math.prod(batch) * D, device=device).reshape(*batch, D)
    shapes = []

    def log_likelihood(z):
        shapes.append(z.shape)
        return -(z**2).sum(-1)

    criterion = LOSSES[name](reduction="none")
    key = torch.tensor(KEY, device=device)
    loss = criterion(loc, torch.zeros_like(loc), log_likelihood, key=key)
    assert loss.shape == batch
    assert shapes == [(criterion.num_samples, *batch, D)]
    flat = criterion(
        loc.reshape(-1, D), torch.zeros_like(loc).reshape(-1, D), log_likelihood, key=key
    )
    assert_close(loss.flatten(), flat)


# Breaks when a log_var shared by the batch is refused, or its gradient is not summed over it.
@pytest.mark.parametrize("name", LOSSES)
def test_log_var_broadcasts(toy, name):
    loc = toy.posterior()[0].detach()
    shared = torch.full((D,), -0.4, device=loc.device, requires_grad=True)
    expanded = shared.detach().expand(B, D).clone().requires_grad_()
    criterion = LOSSES[name]()
    loss = criterion(loc, shared, toy.log_likelihood, key=toy.key)
    expected = criterion(loc, expanded, toy.log_likelihood, key=toy.key)
    assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss, shared)
    assert_close(grad, torch.autograd.grad(expected, expanded)[0].sum(0))


# Breaks when an empty batch crashes a kernel, or gives a NaN for its mean.
@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_batch_has_a_sum_but_no_mean(device, name):
    empty = Toy(device, batch=0)
    assert empty(LOSSES[name](reduction="none")).shape == (0,)
    loss = empty(LOSSES[name](reduction="sum"))
    assert loss.item() == 0
    assert all((grad == 0).all() for grad in empty.gradients(loss))
    with pytest.raises(ValueError, match="at least one datum"):
        empty(LOSSES[name]())


# Breaks when the densities, the weights or the bound are accumulated in the dtype of the networks.
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(device, name, dtype):
    toy = Toy(device, dtype)
    loss = toy(LOSSES[name]())
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(grad.isfinite().all() for grad in toy.gradients(loss))
    # The networks round their outputs to this dtype: a few parts of it in F + D nats.
    tolerance = max(4 * (F + D) * torch.finfo(dtype).eps, 1e-5)
    assert_close(loss.double(), toy.double()(LOSSES[name]()), rtol=0, atol=tolerance)


# Breaks when a likelihood in low precision is added up in it: at 2000 nats one place of bfloat16 is
# 8 nats, so the bound would lose the few nats of the other terms.
@pytest.mark.parametrize("name", LOSSES)
def test_a_bfloat16_likelihood_is_raised_before_the_bound(device, name):
    loc = torch.full((B, D), 1.25, device=device)
    criterion, key = LOSSES[name](), torch.tensor(KEY, device=device)

    def loss(shift, dtype):
        return criterion(
            loc,
            torch.zeros_like(loc),
            lambda z: torch.full_like(z[..., 0], shift).to(dtype),
            key=key,
        )

    assert_close(
        loss(-2000.0, torch.bfloat16) - 2000.0, loss(0.0, torch.float32), rtol=0, atol=1e-3
    )


# Breaks when autocast's mixed dtypes are refused, or make anything narrower than the networks did.
@pytest.mark.parametrize("name", LOSSES)
def test_autocast(toy, name):
    criterion = LOSSES[name]().to(toy.x.device)
    prior = tuple(nn.Parameter(torch.zeros(D, device=toy.x.device)) for _ in range(2))
    with torch.autocast(toy.x.device.type, dtype=torch.bfloat16):
        loss = toy(criterion, prior=prior)
    assert loss.dtype == torch.float32
    grads = toy.gradients(loss)
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)
    assert_close(loss, toy(criterion), rtol=0.02, atol=0.02)


# Breaks on a graph break, or when the compiled loss or its gradient is another than the eager one.
@pytest.mark.native
@pytest.mark.parametrize("name", quick_in(list(LOSSES), "dreg", "analytic"))
def test_compile_without_graph_breaks(toy, fresh_compiler, name):
    criterion = LOSSES[name]()

    def step(x, key):
        loc, log_var = toy.encoder(x).chunk(2, -1)
        return criterion(
            loc, log_var, lambda z: fastvi.ops.bernoulli_log_prob(x, toy.decoder(z)), key=key
        )

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    loss = compiled(toy.x, toy.key)
    expected = step(toy.x, toy.key)
    assert_close(loss, expected)
    assert_close(toy.gradients(loss), toy.gradients(expected))


# Breaks when a compiled loss bakes the key of its first call in, or does not see beta change.
@pytest.mark.slow
@pytest.mark.native
def test_compiled_losses_draw_anew_and_anneal(toy, fresh_compiler):
    criterion = fastvi.ELBOLoss(4)
    compiled = torch.compile(lambda: toy(criterion, key=None), fullgraph=True, backend="aot_eager")
    assert not torch.equal(compiled(), compiled())
    fixed = torch.compile(lambda: toy(criterion), fullgraph=True, backend="aot_eager")
    for beta in (0.0, 0.25, 0.5, 0.75):
        criterion.beta = beta
        assert_close(fixed(), toy(criterion))


# Breaks when the reference path of torch.func gives another gradient than the kernels.
@pytest.mark.parametrize("name", LOSSES)
def test_torch_func_grad(device, name):
    toy = Toy(device, torch.float64)
    criterion = LOSSES[name]()
    q = [t.detach().requires_grad_() for t in toy.posterior()]

    def loss(loc, log_var):
        return criterion(loc, log_var, toy.log_likelihood, key=toy.key)

    grads = torch.func.grad(loss, argnums=(0, 1))(*(t.detach() for t in q))
    assert_close(grads, torch.autograd.grad(loss(*q), q), rtol=1e-9, atol=1e-9)


# Breaks when a second derivative is silently zero: the kernels raise, torch.func has the right one.
@pytest.mark.parametrize("name", ["iwae", "analytic", "monte_carlo"])
def test_second_derivatives_raise_or_are_right(device, name):
    toy = Toy(device, torch.float64)
    criterion = LOSSES[name](reduction="sum")
    loc, log_var = (t.detach() for t in toy.posterior())

    def loss(loc):
        return criterion(loc, log_var, lambda z: -(z**4).sum(-1), key=toy.key)

    leaf = loc.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="double backward of .* is not supported"):
        (grad,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        grad.sum().backward()
    # Along one direction, against a difference of first derivatives.
    step = torch.linspace(-1, 1, loc.numel()).to(loc).reshape(loc.shape)
    slope = torch.func.grad(loss)
    _, curvature = torch.func.jvp(slope, (loc,), (step,))
    difference = (slope(loc + 1e-5 * step) - slope(loc - 1e-5 * step)) / 2e-5
    assert curvature.norm() > 1
    assert_close(curvature, difference, rtol=1e-6, atol=1e-6)


# Breaks when the losses cannot be mapped over a leading dimension, one key for all.
def test_torch_func_vmap(device):
    toy = Toy(device, torch.float64)
    loc, log_var = (t.detach() for t in toy.posterior())
    stacked = torch.stack([loc, loc + 1])
    criterion = fastvi.IWLBLoss(6)
    mapped = torch.func.vmap(lambda m: criterion(m, log_var, toy.log_likelihood, key=toy.key))(
        stacked
    )
    each = [criterion(m, log_var, toy.log_likelihood, key=toy.key) for m in stacked]
    assert_close(mapped, torch.stack(each), rtol=1e-9, atol=1e-9)


# Breaks when Parameters of the prior are not trained, moved and saved with the module, or constants
# become parameters.
def test_a_learned_prior_belongs_to_the_module(toy):
    loc, log_var = nn.Parameter(torch.zeros(D)), torch.zeros(D)
    criterion = fastvi.IWLBLoss(6, prior=(loc, log_var)).to(toy.x.device, toy.x.dtype)
    assert dict(criterion.named_parameters()).keys() == {"prior_loc"}
    assert criterion.state_dict().keys() == {"prior_loc", "prior_log_var"}
    toy(criterion).backward()
    assert criterion.prior_loc.grad.abs().max() > 0
    double = copy.deepcopy(criterion).double()
    assert all(t.dtype == torch.float64 for t in double.prior)
    assert not fastvi.IWLBLoss(6).state_dict()
    assert fastvi.IWLBLoss(6).prior is None


# Breaks when a standard prior given as tensors is not the default, or a call's prior is not used.
@pytest.mark.parametrize("name", LOSSES)
def test_the_prior_of_the_call_takes_the_place_of_the_module_s(toy, name):
    where = toy.x.device
    standard = (torch.zeros(D, device=where), torch.zeros(D, device=where))
    shifted = (torch.ones(D, device=where), torch.ones(D, device=where))
    expected = toy(LOSSES[name]())
    assert_close(toy(LOSSES[name](prior=shifted), prior=standard), expected)
    other = toy(LOSSES[name](prior=shifted))
    assert (other - expected).abs() > 0.1
    # A prior that a network computes, one for each datum.
    amortised = tuple(
        t.expand(B, D) * torch.ones(1, device=where).requires_grad_() for t in shifted
    )
    assert_close(toy(LOSSES[name](), prior=amortised), other)


# Breaks when a prior with a history is kept: the second step would go through a freed graph.
def test_a_computed_prior_is_refused_by_the_module():
    loc = torch.zeros(D, requires_grad=True) * 2
    with pytest.raises(ValueError, match="prior loc to be a Parameter or a constant"):
        fastvi.ELBOLoss(prior=(loc, torch.zeros(D)))


# Breaks when the loss does not train: the exact gradient would lead there, a wrong sign away.
@pytest.mark.parametrize("name", LOSSES)
def test_training_lowers_the_loss(device, name):
    toy = Toy(device, batch=32)
    criterion = LOSSES[name]()
    optimizer = torch.optim.Adam(toy.parameters(), lr=0.03)
    before = toy(criterion).item()
    for _ in range(60):
        optimizer.zero_grad()
        toy(criterion, key=None).backward()
        optimizer.step()
    assert toy(criterion).item() < before - 1.0


# Breaks when an impossible datum poisons the gradient of the others with NaN.
@pytest.mark.parametrize("estimator", ["iwae", "stl", "dreg"])
def test_an_impossible_datum_has_an_infinite_loss_and_no_gradient(toy, estimator):
    impossible = torch.zeros(B, device=toy.x.device)
    impossible[2] = -math.inf
    q = [t.detach().requires_grad_() for t in toy.posterior()]
    loss = fastvi.iwlb_loss(
        *q,
        lambda z: toy.log_likelihood(z) + impossible,
        6,
        estimator=estimator,
        reduction="none",
        key=toy.key,
        validate_args=True,
    )
    assert loss.isinf().tolist() == [False, False, True, False, False]
    for grad in torch.autograd.grad(loss.sum(), q):
        assert grad.isfinite().all()
        assert (grad[2] == 0).all()
        assert (grad[[0, 1, 3, 4]] != 0).all()


# Breaks when the settings do not show where a user prints the model.
def test_repr():
    assert repr(fastvi.IWLBLoss(8)) == (
        "IWLBLoss(num_samples=8, estimator='dreg', reduction='mean')"
    )
    assert repr(fastvi.ELBOLoss(beta=4.0)) == (
        "ELBOLoss(num_samples=1, kl='auto', beta=4.0, estimator='iwae', reduction='mean')"
    )


# Breaks when an example in a docstring does not run as it stands.
@pytest.mark.parametrize("name", ["iwlb_loss", "elbo_loss", "IWLBLoss", "ELBOLoss"])
def test_examples_in_docstrings(name):
    names = {"fastvi": fastvi, "torch": torch}
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(getattr(fastvi, name), name, fastvi.losses, names, names)
    assert example.examples
    runner = doctest.DocTestRunner()
    runner.run(example)
    assert runner.failures == 0
