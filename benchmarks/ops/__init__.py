"""The pieces of work, by name. A new one is a file beside this, and a line here."""

from benchmarks.ops.bernoulli_log_prob import BERNOULLI_LOG_PROB
from benchmarks.ops.bernoulli_sample import BERNOULLI_SAMPLE
from benchmarks.ops.categorical_sample import CATEGORICAL_SAMPLE
from benchmarks.ops.few_step import FEW_STEP, FEW_STEP_CHUNKS
from benchmarks.ops.gaussian_kl import GAUSSIAN_KL
from benchmarks.ops.gaussian_log_prob import GAUSSIAN_LOG_PROB
from benchmarks.ops.gaussian_rsample import GAUSSIAN_RSAMPLE
from benchmarks.ops.iwae_step import IWAE_STEP
from benchmarks.ops.iwlb import IWLB
from benchmarks.ops.laplace_rsample import LAPLACE_RSAMPLE
from benchmarks.ops.leave_one_out import LEAVE_ONE_OUT
from benchmarks.ops.linear_bernoulli_log_prob import LINEAR_BERNOULLI_LOG_PROB
from benchmarks.ops.negative_binomial_log_prob import NEGATIVE_BINOMIAL_LOG_PROB
from benchmarks.ops.normal_distribution import NORMAL_DISTRIBUTION, NORMAL_DISTRIBUTION_CHECKED
from benchmarks.ops.pyro_vae import PYRO_VAES
from benchmarks.ops.sbn_step import SBN_STEP
from benchmarks.work import Work

_ALL: tuple[Work, ...] = (
    GAUSSIAN_RSAMPLE,
    BERNOULLI_LOG_PROB,
    IWLB,
    GAUSSIAN_LOG_PROB,
    GAUSSIAN_KL,
    LEAVE_ONE_OUT,
    LINEAR_BERNOULLI_LOG_PROB,
    NEGATIVE_BINOMIAL_LOG_PROB,
    LAPLACE_RSAMPLE,
    BERNOULLI_SAMPLE,
    CATEGORICAL_SAMPLE,
    NORMAL_DISTRIBUTION,
    NORMAL_DISTRIBUTION_CHECKED,
    IWAE_STEP,
    FEW_STEP,
    FEW_STEP_CHUNKS,
    SBN_STEP,
    *PYRO_VAES,
)
WORKS = {work.name: work for work in _ALL}
