"""The fused ops: each validates its arguments, then runs one C++ or CUDA kernel."""

from fastvi.ops.bernoulli_log_prob import bernoulli_log_prob
from fastvi.ops.gaussian_kl import gaussian_kl
from fastvi.ops.gaussian_log_prob import gaussian_log_prob
from fastvi.ops.gaussian_rsample import gaussian_rsample
from fastvi.ops.iwlb import iwlb
from fastvi.ops.leave_one_out import leave_one_out
from fastvi.ops.linear_bernoulli_log_prob import linear_bernoulli_log_prob
from fastvi.ops.linear_gaussian_log_prob import linear_gaussian_log_prob
from fastvi.ops.new_key import new_key

__all__ = [
    "bernoulli_log_prob",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_rsample",
    "iwlb",
    "leave_one_out",
    "linear_bernoulli_log_prob",
    "linear_gaussian_log_prob",
    "new_key",
]
