"""The fused ops. Each checks its arguments, and runs one C++ or CUDA kernel."""

from fastvi.ops.bernoulli_log_prob import bernoulli_log_prob
from fastvi.ops.bernoulli_sample import bernoulli_sample
from fastvi.ops.categorical_log_prob import categorical_log_prob
from fastvi.ops.categorical_sample import categorical_sample
from fastvi.ops.gaussian_kl import gaussian_kl
from fastvi.ops.gaussian_log_prob import gaussian_log_prob
from fastvi.ops.gaussian_rsample import gaussian_rsample
from fastvi.ops.iwlb import iwlb
from fastvi.ops.laplace_log_prob import laplace_log_prob
from fastvi.ops.laplace_rsample import laplace_rsample
from fastvi.ops.leave_one_out import leave_one_out
from fastvi.ops.linear_bernoulli_log_prob import linear_bernoulli_log_prob
from fastvi.ops.linear_gaussian_log_prob import linear_gaussian_log_prob
from fastvi.ops.linear_poisson_log_prob import linear_poisson_log_prob
from fastvi.ops.negative_binomial_log_prob import negative_binomial_log_prob
from fastvi.ops.new_key import new_key
from fastvi.ops.poisson_log_prob import poisson_log_prob
from fastvi.ops.zero_inflated_negative_binomial_log_prob import (
    zero_inflated_negative_binomial_log_prob,
)

__all__ = [
    "bernoulli_log_prob",
    "bernoulli_sample",
    "categorical_log_prob",
    "categorical_sample",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_rsample",
    "iwlb",
    "leave_one_out",
    "linear_bernoulli_log_prob",
    "linear_gaussian_log_prob",
    "linear_poisson_log_prob",
    "laplace_log_prob",
    "laplace_rsample",
    "negative_binomial_log_prob",
    "new_key",
    "poisson_log_prob",
    "zero_inflated_negative_binomial_log_prob",
]
