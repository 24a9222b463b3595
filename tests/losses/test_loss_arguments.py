"""What the losses refuse, and in which words."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

import fastvi

B, D, F = 5, 3, 7


BAD_OPTIONS = [
    (fastvi.IWLBLoss, {"num_samples": 0}, ValueError, "num_samples to be from 1 to .*, got 0"),
    (fastvi.IWLBLoss, {"num_samples": -3}, ValueError, "num_samples .* got -3"),
    (fastvi.IWLBLoss, {"num_samples": 2**40}, ValueError, "num_samples .* got 1099511627776"),
    (fastvi.IWLBLoss, {"num_samples": 5.0}, TypeError, "num_samples to be an int, got float"),
    (fastvi.IWLBLoss, {"num_samples": True}, TypeError, "num_samples to be an int, got bool"),
    (fastvi.IWLBLoss, {"estimator": "drag"}, ValueError, "estimator to be one of .*'dreg'.*'drag'"),
    (fastvi.IWLBLoss, {"estimator": None}, TypeError, "estimator to be a str, got NoneType"),
    (fastvi.IWLBLoss, {"reduction": "avg"}, ValueError, "reduction to be one of .*'avg'"),
    (fastvi.IWLBLoss, {"prior": 3}, TypeError, "prior to be None .* got int"),
    (fastvi.IWLBLoss, {"prior": (0.0, 1.0)}, TypeError, "prior.* to be a tensor, got float"),
    (fastvi.ELBOLoss, {"num_samples": 0}, ValueError, "num_samples to be from 1 to .*, got 0"),
    (
        fastvi.ELBOLoss,
        {"kl": "exact"},
        ValueError,
        "kl to be one of 'auto', 'analytic'.* got 'exact'",
    ),
    (fastvi.ELBOLoss, {"beta": -1.0}, ValueError, "beta to be finite and at least 0, got -1.0"),
    (fastvi.ELBOLoss, {"beta": math.nan}, ValueError, "beta to be finite .* got nan"),
    (fastvi.ELBOLoss, {"beta": math.inf}, ValueError, "beta to be finite .* got inf"),
    (fastvi.ELBOLoss, {"beta": "1"}, TypeError, "beta to be a float, got str"),
    (fastvi.ELBOLoss, {"estimator": "dreg"}, ValueError, "estimator to be one of 'iwae', 'stl'"),
    (
        fastvi.ELBOLoss,
        {"estimator": "stl", "kl": "analytic"},
        ValueError,
        "kl to be 'monte_carlo' for .*'stl'",
    ),
]


# Breaks when a bad option is accepted, or found only at the first call; "criterion.beta = -1" later
# must be found too.
@pytest.mark.parametrize(
    ("loss", "options", "error", "message"),
    [pytest.param(*row, id=f"{row[0].__name__}-{row[1]}") for row in BAD_OPTIONS],
)
def test_bad_options(loss, options, error, message):
    name = loss.__name__
    defaults = {"num_samples": 4} if loss is fastvi.IWLBLoss else {}
    with pytest.raises(error, match=f"^{name}: expected .*{message}"):
        loss(**{**defaults, **options})
    if "prior" in options:
        return
    criterion = loss(**defaults)
    for option, value in options.items():
        setattr(criterion, option, value)
    with pytest.raises(error, match=message):
        criterion(torch.zeros(B, D), torch.zeros(B, D), lambda z: z.sum(-1))


CHUNKED = {
    "iwlb": lambda **o: fastvi.IWLBLoss(4, **o),
    "elbo": lambda **o: fastvi.ELBOLoss(4, **o),
    "jackknife": lambda **o: fastvi.JackknifeLoss(4, **o),
    "objectives.ELBO": lambda **o: fastvi.objectives.ELBO(4, **o),
    "objectives.IWLB": lambda **o: fastvi.objectives.IWLB(4, **o),
    "objectives.VIMCO": lambda **o: fastvi.objectives.VIMCO(4, **o),
    "log_evidence": lambda **o: fastvi.VAE(
        torch.nn.Linear(F, 2 * D), torch.nn.Linear(D, F)
    ).log_evidence(torch.ones(B, F), 4, **o),
}


# One rule, wherever samples are cut.
@pytest.mark.parametrize("name", CHUNKED)
def test_bad_chunk_sizes(name):
    make = CHUNKED[name]
    for bad, message in ((0, "from 1 to"), (-2, "from 1 to"), (5, "at most num_samples, 4, got 5")):
        with pytest.raises(ValueError, match=f"expected chunk_size to be {message}"):
            make(chunk_size=bad)
    for bad in (2.0, True):
        with pytest.raises(TypeError, match="expected chunk_size to be an int"):
            make(chunk_size=bad)
    make(chunk_size=4)


def test_more_samples_at_a_time_than_there_are_among_ranks():
    with pytest.raises(ValueError, match="chunk_size to be at most num_samples, 4, got 5"):
        fastvi.IWLBLoss(4, chunk_size=5, group=object())


# Breaks when "auto" is not the closed form that a Gaussian posterior has, or takes it from "stl",
# for which it has no score to leave out.
@pytest.mark.parametrize(
    ("estimator", "kl"), [("iwae", "analytic"), ("stl", "monte_carlo")], ids=["iwae", "stl"]
)
def test_the_divergence_by_default(estimator, kl):
    inputs = (torch.ones(B, D), torch.zeros(B, D), lambda z: z.sin().sum(-1))
    key = torch.tensor([1, 2])
    default = fastvi.ELBOLoss(3, estimator=estimator)(*inputs, key=key)
    named = fastvi.ELBOLoss(3, kl, estimator=estimator)(*inputs, key=key)
    torch.testing.assert_close(default, named, rtol=0, atol=0)


def test_options_by_place():
    inputs = (torch.zeros(B, D), torch.zeros(B, D), lambda z: z.sum(-1))
    placed, named = fastvi.IWLBLoss(4, "iwae"), fastvi.IWLBLoss(4, estimator="iwae")
    assert str(placed) == str(named)
    key = torch.tensor([1, 2])
    torch.testing.assert_close(placed(*inputs, key=key), named(*inputs, key=key), rtol=0, atol=0)
    loss = fastvi.iwlb_loss(*inputs, 4, estimator="iwae", key=key)
    torch.testing.assert_close(loss, named(*inputs, key=key), rtol=0, atol=0)


# What an array library's loop or configuration file gives.
def test_numbers_of_numpy():
    inputs = (torch.zeros(B, D), torch.zeros(B, D), lambda z: z.sum(-1))
    key = torch.tensor([1, 2])
    pairs = [
        (
            fastvi.IWLBLoss(np.int64(4), alpha=np.float32(0.5), chunk_size=np.int32(2)),
            fastvi.IWLBLoss(4, alpha=0.5, chunk_size=2),
        ),
        (
            fastvi.ELBOLoss(np.int64(4), beta=np.float32(0.5), chunk_size=np.int32(2)),
            fastvi.ELBOLoss(4, beta=0.5, chunk_size=2),
        ),
    ]
    for ours, plain in pairs:
        assert str(ours) == str(plain)
        torch.testing.assert_close(ours(*inputs, key=key), plain(*inputs, key=key), rtol=0, atol=0)
    objective = fastvi.objectives.IWLB(np.int64(4), alpha=np.float32(0.5), chunk_size=np.int32(2))
    assert str(objective) == str(fastvi.objectives.IWLB(4, alpha=0.5, chunk_size=2))
    with pytest.raises(TypeError, match="num_samples to be an int, got bool"):
        fastvi.IWLBLoss(np.bool_(True))


def likelihood_of(value):
    return {"log_likelihood": lambda z: value}


ZEROS = torch.zeros(B, D)
BAD_INPUTS = {
    "loc_list": ({"loc": [0.0]}, TypeError, "loc to be a tensor, got list"),
    "loc_integer": ({"loc": ZEROS.long()}, TypeError, "loc to be floating-point, got torch.int64"),
    "loc_scalar": ({"loc": torch.tensor(0.0)}, ValueError, r"loc to have shape \(\*batch, D\)"),
    "log_var_none": ({"log_var": None}, TypeError, "log_var to be a tensor, got NoneType"),
    "log_var_bool": ({"log_var": ZEROS.bool()}, TypeError, "log_var to be floating-point"),
    "log_var_shape": (
        {"log_var": torch.zeros(B + 1, D)},
        ValueError,
        re.escape("log_var to broadcast with loc, [5, 3], got [6, 3]"),
    ),
    "log_var_dtype": ({"log_var": ZEROS.double()}, TypeError, "dtype"),
    "log_var_device": ({"log_var": ZEROS.to("meta")}, ValueError, "device"),
    "prior_integer": (
        {"prior": (torch.zeros(D), torch.zeros(D, dtype=torch.int32))},
        TypeError,
        "prior log_var to be floating-point, got torch.int32",
    ),
    "prior_shape": ({"prior": (torch.zeros(D + 1), torch.zeros(D + 1))}, ValueError, "prior"),
    "key_int": ({"key": 3}, TypeError, "key to be a tensor, got int"),
    "key_dtype": ({"key": torch.zeros(2)}, TypeError, "key to be an int64 tensor"),
    "key_shape": ({"key": torch.zeros(3, dtype=torch.int64)}, ValueError, "key to have shape"),
    "no_function": (
        {"log_likelihood": ZEROS},
        TypeError,
        "log_likelihood to be a function of z, got Tensor",
    ),
    "likelihood_float": (likelihood_of(-3.0), TypeError, r"log_likelihood\(z\) to be a tensor"),
    "likelihood_integer": (
        likelihood_of(torch.zeros(4, B, dtype=torch.int64)),
        TypeError,
        r"log_likelihood\(z\) to be floating-point, got torch.int64",
    ),
    "likelihood_per_feature": (
        likelihood_of(torch.zeros(4, B, F)),
        ValueError,
        re.escape("(K, *batch) = [4, 5], got [4, 5, 7]; this looks like one value per feature"),
    ),
    "likelihood_reduced": (
        likelihood_of(torch.zeros(B)),
        ValueError,
        re.escape("= [4, 5], got [5]; keep one value per sample and datum"),
    ),
    "likelihood_broadcast": (
        likelihood_of(torch.zeros(1, B)),
        ValueError,
        re.escape("= [4, 5], got [1, 5]"),
    ),
    "likelihood_transposed": (
        likelihood_of(torch.zeros(B, 4)),
        ValueError,
        re.escape("= [4, 5], got [5, 4]"),
    ),
    "likelihood_device": (likelihood_of(torch.zeros(4, B, device="meta")), ValueError, "device"),
}


# Breaks when bad input crashes, is silently accepted, or the message does not say what came.
@pytest.mark.parametrize("kl", [None, "analytic", "monte_carlo"], ids=["iwlb", "elbo", "elbo_mc"])
@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs(kl, name):
    changes, error, message = BAD_INPUTS[name]
    inputs = {"loc": ZEROS, "log_var": ZEROS, "log_likelihood": lambda z: z.sum(-1), **changes}
    with pytest.raises(error, match=message):
        if kl is None:
            fastvi.iwlb_loss(**inputs, num_samples=4)
        else:
            fastvi.elbo_loss(**inputs, num_samples=4, kl=kl)


NOT_FINITE = {
    "loc": {"loc": ZEROS + math.nan},
    "log_var": {"log_var": ZEROS - math.inf},
    "prior loc": {"prior": (ZEROS + math.inf, ZEROS)},
    "prior log_var": {"prior": (ZEROS, ZEROS + math.nan)},
    "log_likelihood": {"log_likelihood": lambda z: z.sum(-1) + math.nan},
}


# Breaks when validate_args misses an argument; without it, what is not finite must reach the loss.
@pytest.mark.parametrize("loss", [fastvi.iwlb_loss, fastvi.elbo_loss], ids=["iwlb", "elbo"])
@pytest.mark.parametrize("name", NOT_FINITE)
def test_validate_args_finds_what_is_not_finite(loss, name):
    inputs = {"loc": ZEROS, "log_var": ZEROS, "log_likelihood": lambda z: z.sum(-1)}
    inputs = {**inputs, **NOT_FINITE[name], "num_samples": 4}
    with pytest.raises(ValueError, match=f"{name}.*got NaN or"):
        loss(**inputs, validate_args=True)
    assert not loss(**inputs).isfinite()
