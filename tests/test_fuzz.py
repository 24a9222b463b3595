"""Densities and the divergence on whatever hypothesis draws, against 60 digits."""

from __future__ import annotations

from fuzz_densities import MODES, check_density, density_calls
from fuzz_running import finds, fuzz

test_normal_densities = fuzz(
    40, case=density_calls(("gaussian_log_prob", "laplace_log_prob"))
)(check_density)
