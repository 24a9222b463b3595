"""The distributions beside torch's own: the same numbers, gradients, shapes, types and errors."""

from __future__ import annotations

import copy
import pickle
from unittest import mock

import pytest
import torch
from distribution_table import FAMILIES, Family, both, families
from op_table import DEVICES
from torch import Tensor
from torch import distributions as theirs
from torch.overrides import TorchFunctionMode

from fastvi import distributions as ours
from fastvi import ops

on_devices = pytest.mark.parametrize("device", DEVICES)
CHECKS = pytest.mark.parametrize("validate_args", [None, True, False], ids=str)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=[str(d)[6:] for d in DTYPES])


def leaves(parameters: dict[str, Tensor]) -> list[Tensor]:
    return [x.requires_grad_() for x in parameters.values()]


# ---- log_prob -----------------------------------------------------------------------------------
@on_devices
@CHECKS
@families
def test_log_prob_and_its_gradients(family: Family, validate_args, device: str):
    parameters, value = family.draw(device=device, lead=(3,))
    inputs = leaves(parameters)
    if family.differentiable:
        inputs.append(value.requires_grad_())
    found, exact = (
        p.log_prob(value) for p in both(family, parameters, validate_args=validate_args)
    )
    torch.testing.assert_close(found, exact)
    weight = torch.linspace(-1, 1, found.numel(), dtype=found.dtype, device=device)
    gradients = [
        torch.autograd.grad((out * weight.reshape(out.shape)).sum(), inputs)
        for out in (found, exact)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.native
@families
def test_the_kernel_does_it(family: Family):
    """What stands in for torch's formula is the op, and no copy of the formula."""
    parameters, value = family.draw()
    p = family.ours(**parameters)
    if "categorical-probs" in family.label:
        pytest.skip("torch has normalised them: what is left is to look one up")
    with mock.patch.object(
        family.theirs, "log_prob", side_effect=AssertionError("torch's formula")
    ):
        p.log_prob(value)


@dtypes
@families
def test_types_are_those_of_torch(family: Family, dtype: torch.dtype):
    parameters, value = family.draw(dtype)
    # torch does not take half-precision probabilities for ones that sum to one.
    options = {"validate_args": False}
    found, exact = (p.log_prob(value) for p in both(family, parameters, **options))
    assert found.dtype == exact.dtype == dtype
    assert found.shape == exact.shape
    wide, _ = both(family, {name: x.double() for name, x in parameters.items()})
    true = wide.log_prob(value if family.name == "Categorical" else value.double())
    # No further from the truth than torch, and one rounding.
    slack = 2 * (exact.double() - true).abs().max() + 4 * torch.finfo(dtype).eps * true.abs().max()
    assert (found.double() - true).abs().max() <= slack


@families
def test_values_of_another_type(family: Family):
    parameters, value = family.draw(torch.float32)
    for other in (value.double(), value.long()):
        p, q = both(family, parameters)
        try:
            exact = q.log_prob(other)
        except (RuntimeError, ValueError) as error:
            with pytest.raises(type(error)):
                p.log_prob(other)
            continue
        found = p.log_prob(other)
        assert found.dtype == exact.dtype
        if other.dtype == torch.float64 and family.name != "Categorical":
            # All of it is in float64; torch has the parameters' part in float32.
            wide, _ = both(family, {name: x.double() for name, x in parameters.items()})
            exact = wide.log_prob(other)
        torch.testing.assert_close(found, exact)


@pytest.mark.parametrize(
    "shape", [(5,), (1, 5), (4, 1), (6, 1, 1), (3, 4, 5), ()], ids=lambda shape: str(list(shape))
)
@families
def test_values_broadcast(family: Family, shape: tuple[int, ...]):
    parameters, value = family.draw(lead=(6,))
    value = value.flatten()[: torch.Size(shape).numel()].reshape(shape)
    found, exact = (p.log_prob(value) for p in both(family, parameters))
    torch.testing.assert_close(found, exact)


@families
def test_no_elements(family: Family):
    parameters, value = family.draw()
    # torch's check of no logits at all is an error of reshape.
    checks = {"validate_args": family.name != "Categorical"}
    p, q = both(family, {name: x[:0] for name, x in parameters.items()}, **checks)
    torch.testing.assert_close(p.log_prob(value[:0]), q.log_prob(value[:0]))


NUMBERS = [
    pytest.param("Normal", {"loc": 0.5, "scale": 2.0}, 1.5, id="normal"),
    pytest.param("Laplace", {"loc": 0.5, "scale": 2.0}, 1.5, id="laplace"),
    pytest.param("Bernoulli", {"probs": 0.25}, 1.0, id="bernoulli-probs"),
    pytest.param("Bernoulli", {"logits": 0.25}, 0.0, id="bernoulli-logits"),
    pytest.param("Poisson", {"rate": 2.5}, 3.0, id="poisson"),
    pytest.param("NegativeBinomial", {"total_count": 3, "probs": torch.tensor(0.3)}, 2.0, id="nb"),
]


@pytest.mark.parametrize(("name", "parameters", "value"), NUMBERS)
def test_numbers_as_parameters(name: str, parameters: dict, value: float):
    p, q = (getattr(package, name)(**parameters) for package in (ours, theirs))
    assert p.batch_shape == q.batch_shape == ()
    torch.testing.assert_close(p.log_prob(torch.tensor(value)), q.log_prob(torch.tensor(value)))


def test_tensor_and_number_broadcast():
    loc = torch.randn(3, 1)
    for scale in (2.0, torch.rand(4) + 1):
        p, q = ours.Normal(loc, scale), theirs.Normal(loc, scale)
        assert p.batch_shape == q.batch_shape
        x = torch.randn(5, *p.batch_shape)
        torch.testing.assert_close(p.log_prob(x), q.log_prob(x))


# ---- the rest of the interface ------------------------------------------------------------------
@families
def test_it_is_one_of_torch(family: Family):
    parameters, _ = family.draw()
    p, q = both(family, parameters)
    assert isinstance(p, family.theirs)
    assert repr(p) == repr(q)
    assert p.batch_shape == q.batch_shape and p.event_shape == q.event_shape
    assert str(p.support) == str(q.support)
    assert p.arg_constraints.items() >= q.arg_constraints.items()
    assert (p.has_rsample, p.has_enumerate_support) == (q.has_rsample, q.has_enumerate_support)
    for name in ("mean", "mode", "variance", "stddev"):
        torch.testing.assert_close(getattr(p, name), getattr(q, name), equal_nan=True)


@families
def test_samples_are_those_of_torch(family: Family):
    """A program that is seeded keeps its numbers when the distributions are swapped."""
    parameters, _ = family.draw()
    drawn = []
    for p in both(family, parameters):
        torch.manual_seed(3)
        drawn.append(p.sample((6,)))
    torch.testing.assert_close(*drawn, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["entropy", "cdf", "icdf", "enumerate_support", "perplexity"])
@families
def test_methods(family: Family, method: str):
    parameters, value = family.draw()
    arguments = {"cdf": (value,), "icdf": (value.abs() % 1,)}.get(method, ())
    p, q = both(family, parameters)
    try:
        exact = getattr(q, method)(*arguments)
    except NotImplementedError:
        with pytest.raises(NotImplementedError):
            getattr(p, method)(*arguments)
    else:
        torch.testing.assert_close(getattr(p, method)(*arguments), exact)


@pytest.mark.parametrize("name", ["Normal", "Laplace"])
def test_icdf_is_the_inverse_of_cdf(name: str):
    p = getattr(ours, name)(torch.tensor(0.3).double(), torch.tensor(1.7).double())
    u = torch.linspace(0.01, 0.99, 25).double()
    torch.testing.assert_close(p.cdf(p.icdf(u)), u)


@families
def test_expand(family: Family):
    parameters, value = family.draw(lead=(3,))
    p, q = (p.expand((3, 4, 5)) for p in both(family, parameters))
    assert type(p) is family.ours and p.batch_shape == q.batch_shape
    torch.testing.assert_close(p.log_prob(value), q.log_prob(value))
    again = p.expand((2, 3, 4, 5))
    torch.testing.assert_close(again.log_prob(value), q.expand((2, 3, 4, 5)).log_prob(value))


@families
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies(family: Family, copied):
    parameters, value = family.draw()
    for p in (family.ours(**parameters), family.ours(**parameters).expand((2, 4, 5))):
        same = copied(p)
        assert type(same) is type(p)
        torch.testing.assert_close(same.log_prob(value), p.log_prob(value), rtol=0, atol=0)
        assert same._validate_args == p._validate_args


def test_the_setting_of_torch_is_kept():
    """A distribution made under the global setting follows it, as torch's do."""
    p = ours.Normal(torch.zeros(2), torch.ones(2))
    nan = torch.full((2,), torch.nan)
    theirs.Distribution.set_default_validate_args(False)
    assert bool(p.log_prob(nan).isnan().all())
    ours.Normal(torch.zeros(2), -torch.ones(2))
    theirs.Distribution.set_default_validate_args(True)
    with pytest.raises(ValueError, match="within the support"):
        p.log_prob(nan)


# ---- kl_divergence ------------------------------------------------------------------------------
KL_PAIRS = [("Normal", "Normal"), ("Laplace", "Laplace"), ("Laplace", "Normal"),
            ("Bernoulli", "Bernoulli"), ("Categorical", "Categorical"), ("Poisson", "Poisson"),
            ("Bernoulli", "Poisson")]  # fmt: skip


@pytest.mark.parametrize(("left", "right"), KL_PAIRS, ids=lambda name: name)
def test_kl_divergence(left: str, right: str):
    """Ours with ours, and with torch's on either side."""
    table = {family.name: family for family in reversed(FAMILIES)}
    (p, p_), (q, q_) = (both(table[name], table[name].draw()[0]) for name in (left, right))
    exact = theirs.kl_divergence(p_, q_)
    for pair in ((p, q), (p, q_), (p_, q)):
        torch.testing.assert_close(theirs.kl_divergence(*pair), exact)


# ---- autograd -----------------------------------------------------------------------------------
@families
def test_transforms_of_torch_func(family: Family):
    parameters, value = family.draw()
    names = list(parameters)

    def total(module, *inputs: Tensor) -> Tensor:
        p = getattr(module, family.name)(
            **dict(zip(names, inputs, strict=True)), validate_args=False
        )
        return p.log_prob(value).sum()

    inputs, places = tuple(parameters.values()), tuple(range(len(names)))
    for transform in (
        lambda f: torch.func.grad(f, places)(*inputs),
        lambda f: torch.func.hessian(f, places)(*inputs),
        lambda f: torch.func.jvp(f, inputs, tuple(torch.ones_like(x) for x in inputs)),
    ):
        found, exact = (
            transform(lambda *x, module=module: total(module, *x)) for module in (ours, theirs)
        )
        torch.testing.assert_close(found, exact)


def test_vmap_over_parameters():
    loc, x = torch.randn(6, 4), torch.randn(4)

    def density(loc: Tensor) -> Tensor:
        return ours.Normal(loc, torch.ones(4), validate_args=False).log_prob(x).sum()

    exact = theirs.Normal(loc, 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(torch.func.vmap(density)(loc), exact)


@pytest.mark.parametrize("family", FAMILIES, ids=[f.label for f in FAMILIES])
def test_second_derivatives_are_those_of_torch(family: Family):
    parameters, value = family.draw()
    inputs = leaves(parameters)
    answers = []
    for make in (family.ours, family.theirs):
        total = make(**parameters).log_prob(value).sum()
        first = torch.autograd.grad(total, inputs, create_graph=True)
        answers.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    torch.testing.assert_close(*answers)


def test_a_default_device_leaves_the_kernels_on():
    """It is a mode that sees every function, but changes those alone that make a tensor."""
    p = ours.Normal(torch.zeros(3), torch.ones(3))

    class Watching(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    with mock.patch.object(ops, "gaussian_log_prob", wraps=ops.gaussian_log_prob) as op:
        with torch.device("cpu"):
            p.log_prob(torch.zeros(3))
        assert op.call_count == 1
        with torch.device("cpu"), Watching():
            p.log_prob(torch.zeros(3))
        assert op.call_count == 1


def test_forward_mode_outside_torch_func():
    """The kernel would give no derivative; torch's formula does."""
    from torch.autograd import forward_ad

    loc, scale, x = torch.randn(3).double(), torch.rand(3).double() + 1, torch.randn(3).double()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(loc, torch.ones(3).double())
        tangent = forward_ad.unpack_dual(ours.Normal(dual, scale).log_prob(x)).tangent
    torch.testing.assert_close(tangent, (x - loc) / scale**2)


# ---- trace and compile --------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore")
@families
def test_jit_trace(family: Family):
    parameters, value = family.draw()
    names = list(parameters)

    def log_prob(value: Tensor, *inputs: Tensor) -> Tensor:
        return family.ours(**dict(zip(names, inputs, strict=True))).log_prob(value)

    traced = torch.jit.trace(log_prob, (value, *parameters.values()))
    other = [x.flip(0) for x in parameters.values()]
    torch.testing.assert_close(traced(value, *other), log_prob(value, *other))


@pytest.mark.native
@families
def test_compile_in_one_graph(family: Family, fresh_compiler):
    parameters, value = family.draw(torch.float32)
    names = list(parameters)

    def log_prob(value: Tensor, *inputs: Tensor) -> Tensor:
        p = family.ours(**dict(zip(names, inputs, strict=True)), validate_args=False)
        return p.log_prob(value)

    compiled = torch.compile(log_prob, backend="aot_eager", fullgraph=True)
    inputs = tuple(parameters.values())
    torch.testing.assert_close(compiled(value, *inputs), log_prob(value, *inputs))


# ---- odd values ---------------------------------------------------------------------------------
def test_infinity_is_a_real_number():
    """As in torch: two of them add to NaN, and still none of them is one."""
    x = torch.tensor([torch.inf, -torch.inf])
    p, q = (module.Normal(torch.zeros(2), torch.ones(2)) for module in (ours, theirs))
    torch.testing.assert_close(p.log_prob(x), q.log_prob(x))


def test_certain_classes():
    """A logit of minus infinity is a class that cannot be."""
    logits = torch.tensor([[0.0, -torch.inf], [1.0, 1.0]])
    value = torch.tensor([1, 0])
    torch.testing.assert_close(
        ours.Categorical(logits=logits).log_prob(value),
        theirs.Categorical(logits=logits).log_prob(value),
    )


def test_logits_of_classes_are_normalised_when_asked_for():
    logits = torch.randn(3, 4, dtype=torch.float64)
    p, q = ours.Categorical(logits=logits), theirs.Categorical(logits=logits)
    torch.testing.assert_close(p.log_prob(torch.arange(3)), q.log_prob(torch.arange(3)))
    assert "logits" not in p.__dict__
    torch.testing.assert_close(p.logits, q.logits)
    torch.testing.assert_close(p.log_prob(torch.arange(3)), q.log_prob(torch.arange(3)))
    many = torch.randint(4, (50, 3))
    torch.testing.assert_close(p.log_prob(many), q.log_prob(many))


def test_ops_and_distributions_agree():
    value, loc = torch.randn(4, 3), torch.randn(10, 4, 3)
    event = ours.Independent(ours.Normal(loc, torch.ones_like(loc)), 1)
    exact = ops.gaussian_log_prob(value, loc, scale=torch.ones_like(loc))
    torch.testing.assert_close(event.log_prob(value), exact, rtol=0, atol=0)
