"""Guides: the families that approximate a posterior, of each example or of all the data."""

from fastvi.guides.amortized import AmortizedGuide
from fastvi.guides.discrete import BernoulliGuide, CategoricalGuide
from fastvi.guides.gaussian import LowRankGaussian, MeanFieldGaussian
from fastvi.guides.guide import Guide

__all__ = [
    "AmortizedGuide",
    "BernoulliGuide",
    "CategoricalGuide",
    "Guide",
    "LowRankGaussian",
    "MeanFieldGaussian",
]
