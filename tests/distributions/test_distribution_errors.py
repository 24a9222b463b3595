"""Parameters and values that a distribution refuses, in torch's words."""

from __future__ import annotations

import pytest
import torch
from distribution_table import Family, both, families
from torch import distributions as theirs
from torch.distributions import constraints

from fastvi import distributions as ours

BAD = [
    pytest.param("Normal", {"loc": 0.0, "scale": 0.0}, "scale", id="scale-zero"),
    pytest.param("Normal", {"loc": 0.0, "scale": -1.0}, "scale", id="scale-negative"),
    pytest.param("Normal", {"loc": 0.0, "scale": torch.nan}, "scale", id="scale-nan"),
    pytest.param("Normal", {"loc": torch.nan, "scale": 1.0}, "loc", id="loc-nan"),
    pytest.param("Laplace", {"loc": 0.0, "scale": -1.0}, "scale", id="laplace-scale"),
    pytest.param("Bernoulli", {"probs": 1.5}, "probs", id="bernoulli-above"),
    pytest.param("Bernoulli", {"probs": -0.5}, "probs", id="bernoulli-below"),
    pytest.param("Bernoulli", {"probs": torch.nan}, "probs", id="bernoulli-nan"),
    pytest.param("Bernoulli", {"logits": torch.nan}, "logits", id="bernoulli-logits-nan"),
    pytest.param("Poisson", {"rate": -1.0}, "rate", id="poisson-rate"),
    pytest.param("NegativeBinomial", {"total_count": -1.0, "probs": 0.5}, "total_count", id="nb"),
    pytest.param("NegativeBinomial", {"total_count": 1.0, "probs": 1.0}, "probs", id="nb-probs"),
]


@pytest.mark.parametrize(("name", "bad", "parameter"), BAD)
def test_bad_parameters(name: str, bad: dict[str, float], parameter: str):
    """Refused in torch's words, one bad number among good ones."""
    good = {"loc": 0.0, "scale": 1.0, "total_count": 1.0, "probs": 0.5}
    parameters = {
        key: torch.tensor([good.get(key, 1.0), value, good.get(key, 1.0)])
        for key, value in bad.items()
    }
    messages = []
    for package in (ours, theirs):
        with pytest.raises(ValueError, match=f"Expected parameter {parameter} ") as caught:
            getattr(package, name)(**parameters)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    getattr(ours, name)(**parameters, validate_args=False)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=["nan", "inf"])
def test_bad_logits_of_classes(bad: float):
    logits = torch.tensor([[0.0, bad, 1.0], [0.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="Expected parameter logits"):
        ours.Categorical(logits=logits)
    with pytest.raises(ValueError, match="at least one-dimensional"):
        ours.Categorical(logits=torch.tensor(0.0))
    with pytest.raises(ValueError, match="but not both"):
        ours.Categorical(logits=logits, probs=logits)
    with pytest.raises(ValueError, match="but not both"):
        ours.Bernoulli()


OUTSIDE = {
    "Normal": [torch.nan],
    "Laplace": [torch.nan],
    "Bernoulli": [0.5, -1.0, 2.0, torch.inf, torch.nan],
    "Categorical": [-1, 7],
    "Poisson": [-1.0, 0.5, torch.inf, torch.nan],
    "NegativeBinomial": [-1.0, 0.5, torch.inf, torch.nan],
}


@families
def test_values_outside_the_support(family: Family):
    parameters, value = family.draw()
    for bad in OUTSIDE[family.name]:
        wrong = value.clone()
        wrong[1, 2] = bad
        messages = []
        for p in both(family, parameters):
            with pytest.raises(ValueError, match="within the support") as caught:
                p.log_prob(wrong)
            messages.append(str(caught.value))
            with pytest.raises(ValueError, match="within the support"):
                p.log_prob(wrong[1])  # of fewer dimensions than the parameters
        assert messages[0] == messages[1]
        if family.label != "categorical-probs":  # torch looks it up, out of range
            family.ours(**parameters, validate_args=False).log_prob(wrong)


@families
def test_values_of_the_wrong_shape(family: Family):
    parameters, value = family.draw()
    for p in both(family, parameters):
        with pytest.raises(ValueError, match="not broadcastable with batch_shape"):
            p.log_prob(value[:3])
        with pytest.raises(ValueError, match="must be a Tensor"):
            p.log_prob(0.0)


def test_a_subclass_keeps_its_own_constraints():
    """The quick checks know those of the class alone."""

    class Narrow(ours.Normal):
        arg_constraints = {"loc": constraints.positive, "scale": constraints.positive}
        support = constraints.positive

    with pytest.raises(ValueError, match="loc"):
        Narrow(torch.tensor([-1.0]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="support"):
        Narrow(torch.tensor([1.0]), torch.tensor([1.0])).log_prob(torch.tensor([-1.0]))
