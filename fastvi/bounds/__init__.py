"""Bounds of the evidence: what each estimator of a gradient weighs."""
