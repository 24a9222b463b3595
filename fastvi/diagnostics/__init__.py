"""Diagnostics of a bound, from its importance weights."""
