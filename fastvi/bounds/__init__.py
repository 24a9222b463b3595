"""Bounds of the evidence, and the estimators of their gradients."""
