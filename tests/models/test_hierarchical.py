"""Deeper VAEs: exact answers, noise of the gradients, keys and chunks, and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from hierarchical_settings import belief_network, gaussian_pair, linear, mixture
from op_table import DEVICES
from torch import Tensor, nn

import fastvi
from fastvi import objectives
from fastvi.ops import bernoulli_sample, gaussian_rsample, new_key

KEY = torch.tensor([1, 2])


# ---- two linear Gaussian layers: everything is known ---------------------------------------------
class Affine(nn.Module):
    """loc = slope h + offset and a constant log_var; one offset for all data or for each."""

    def __init__(self, slope: float, offset: Tensor, log_var: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64))
        self.offset = nn.Parameter(offset.clone())
        self.log_var = nn.Parameter(torch.tensor(log_var, dtype=torch.float64))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        loc = (self.slope * h.reshape(-1, *self.offset.shape) + self.offset).reshape(h.shape)
        return loc, self.log_var.expand(h.shape)


A, B, MIDDLE, NOISE = 0.8, 1.2, 0.6, 0.5


def chain(data: int = 1, off: float = 0.0) -> fastvi.HierarchicalVAE:
    """h2 ~ N(0, 1), h1 ~ N(A h2, MIDDLE^2), x ~ N(B h1, NOISE^2); the guide is the posterior."""
    spread = A**2 + MIDDLE**2
    first = 1 / spread + B**2 / NOISE**2
    second = 1 + A**2 / MIDDLE**2
    zero = torch.zeros(1, 1, dtype=torch.float64)
    offset = torch.full((data, 1), off, dtype=torch.float64)

    class Decoder(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return B * h

    return fastvi.HierarchicalVAE(
        [
            fastvi.StochasticLayer(
                "gaussian",
                1,
                guide=Affine(B / NOISE**2 / first, offset, -math.log(first)),
                model=Affine(A, zero, 2 * math.log(MIDDLE)),
            ),
            fastvi.StochasticLayer(
                "gaussian", 1, guide=Affine(A / MIDDLE**2 / second, offset, -math.log(second))
            ),
        ],
        Decoder(),
        likelihood=fastvi.GaussianLikelihood(scale=torch.tensor(NOISE).double()),
    )


def evidence(x: Tensor) -> Tensor:
    variance = B**2 * (A**2 + MIDDLE**2) + NOISE**2
    return (-0.5 * x.square() / variance - 0.5 * math.log(2 * math.pi * variance)).squeeze(-1)


def guide_of(network: fastvi.HierarchicalVAE) -> list[nn.Parameter]:
    return [p for layer in network.layers for p in layer.guide.parameters()]


@pytest.mark.parametrize("num_samples", [1, 2, 50], ids=lambda k: f"K={k}")
@pytest.mark.parametrize("estimator", ["dreg", "stl", "iwae"])
def test_guide_is_posterior(num_samples: int, estimator: str):
    network, x = chain(), torch.tensor([[0.7], [-1.3], [2.0]]).double()
    objective = objectives.IWLB(num_samples, estimator)
    bound = network.bound(x, objective, key=KEY)
    torch.testing.assert_close(bound, evidence(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(network.log_evidence(x, num_samples), evidence(x))
    gradients = torch.autograd.grad(bound.sum(), guide_of(network))
    largest = max(part.abs().max().item() for part in gradients)
    # The score has mean zero and no value of zero.
    assert largest > 1e-2 if estimator == "iwae" else largest < 1e-10


def test_evidence_under_another_guide():
    network, x = chain(off=0.2), torch.tensor([[0.7]]).double()
    ours = network.log_evidence(x, 200_000, key=KEY)
    # log p - L is about the variance of a weight over 2 K, here less than 1e-5; the standard error
    # of L is sqrt(that of a weight over K).
    log_w = network.log_weights(x, 10_000, key=KEY).detach()
    relative = (log_w - evidence(x)).exp().var() / 200_000
    assert abs(ours - evidence(x)) < 5 * relative.sqrt()


def noise_of_gradients(estimator: str, num_samples: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over 20 000 data, all the same, for each layer's offset."""
    data = 20_000
    network = chain(data, off=0.1)
    x = torch.full((data, 1), 0.7, dtype=torch.float64)
    bound = network.bound(x, objectives.IWLB(num_samples, estimator), key=KEY)
    offsets = [layer.guide.offset for layer in network.layers]
    gradients = torch.stack(torch.autograd.grad(bound.sum(), offsets)).squeeze(-1)
    return gradients.mean(1), gradients.std(1)


@pytest.fixture(scope="module")
def noise():
    return {
        (estimator, k): noise_of_gradients(estimator, k)
        for estimator in ("dreg", "iwae")
        for k in (4, 64)
    }


@pytest.mark.slow
def test_the_doubly_reparameterised_gradient_is_less_noisy(noise):
    for k in (4, 64):
        (mean, std), (other_mean, other_std) = noise["dreg", k], noise["iwae", k]
        assert (std < 0.5 * other_std).all()
        # Five standard errors of the difference.
        assert ((mean - other_mean).abs() < 5 * other_std / math.sqrt(20_000)).all()


@pytest.mark.slow
def test_its_signal_does_not_drown_in_many_samples(noise):
    """From 4 to 64 samples the laws say times 4, and for the plain gradient a quarter."""
    ratios = {}
    for estimator in ("dreg", "iwae"):
        few, many = ((m / s).abs() for m, s in (noise[estimator, k] for k in (4, 64)))
        ratios[estimator] = many / few
    assert (ratios["dreg"] > 2.0).all()
    assert (ratios["iwae"] < 0.6).all()


# ---- keys, chunks, other dtypes ------------------------------------------------------------------
def three_families() -> fastvi.HierarchicalVAE:
    return fastvi.HierarchicalVAE(
        [
            fastvi.StochasticLayer("gaussian", 3, guide=linear(5, 6), model=linear(4, 6)),
            fastvi.StochasticLayer("bernoulli", 4, guide=linear(3, 4), model=linear(2, 4)),
            fastvi.StochasticLayer("categorical", 2, guide=linear(4, 2)),
        ],
        linear(3, 5),
    )


X = torch.tensor([[1.0, 0, 1, 1, 0], [0, 0, 1, 0, 1]]).double()
MODELS = [
    pytest.param(three_families, X, id="three families"),
    pytest.param(belief_network, X[:, :2], id="belief network"),
    pytest.param(gaussian_pair, X[:, :2], id="two Gaussians"),
    pytest.param(mixture, X[:, :2], id="mixture"),
]


@pytest.mark.parametrize(("build", "x"), MODELS)
def test_a_sample_depends_on_its_place_alone(build, x: Tensor):
    network = build()
    whole = network.draw(x, 9, key=KEY)
    for start, size in ((0, 4), (4, 1), (5, 4)):
        part = network.draw(x, size, key=KEY, sample_offset=start)
        for name, d in part.items():
            same = whole[name].value[start : start + size]
            torch.testing.assert_close(d.value, same, rtol=0, atol=1e-14)
    log_w = network.log_weights(x, 9, key=KEY)
    parts = [network.log_weights(x, k, key=KEY, sample_offset=s) for s, k in ((0, 4), (4, 5))]
    torch.testing.assert_close(torch.cat(parts), log_w)
    expected = log_w.logsumexp(0) - math.log(9)
    for chunk in (1, 2, 9, None):
        torch.testing.assert_close(network.log_evidence(x, 9, chunk_size=chunk, key=KEY), expected)


@pytest.mark.parametrize(("build", "x"), MODELS)
def test_keys_govern_all_noise(build, x: Tensor):
    network = build()
    first, again = (network.log_weights(x, 5, key=KEY) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(network.log_weights(x, 5, key=KEY + 1), first)
    torch.manual_seed(7)
    drawn = network.log_weights(x, 5)
    torch.manual_seed(7)
    torch.testing.assert_close(network.log_weights(x, 5), drawn, rtol=0, atol=0)
    torch.manual_seed(7)
    torch.testing.assert_close(network.log_weights(x, 5, key=new_key()), drawn, rtol=0, atol=0)


@pytest.mark.parametrize("chunk_size", [1, 3], ids=lambda size: f"chunks of {size}")
@pytest.mark.parametrize(
    ("build", "objective"),
    [
        pytest.param(gaussian_pair, objectives.IWLB, id="DReG"),
        pytest.param(belief_network, objectives.VIMCO, id="VIMCO"),
    ],
)
def test_chunks_of_the_objective_change_nothing(build, objective, chunk_size: int):
    network, x = build(), X[:, :2]
    runs = []
    for size in (None, chunk_size):
        loss = network.loss(x, objective(7, chunk_size=size), key=KEY)
        runs.append((loss, *torch.autograd.grad(loss, list(network.parameters()))))
    torch.testing.assert_close(runs[1], runs[0])


def test_each_layer_has_noise_of_its_own():
    zero = linear(3, 3)
    nn.init.zeros_(zero.weight)
    layers = [fastvi.StochasticLayer("bernoulli", 3, guide=zero, model=zero)]
    layers.append(fastvi.StochasticLayer("bernoulli", 3, guide=zero))
    network = fastvi.HierarchicalVAE(layers, linear(3, 3))
    drawn = network.draw(torch.zeros(100, 3).double(), 50, key=KEY)
    first, second = (2 * d.value.flatten() - 1 for d in drawn.values())
    p = zero.bias.sigmoid().repeat(5000)
    product = (drawn["h1"].value.flatten() - p) * (drawn["h2"].value.flatten() - p)
    assert product.mean().abs() < 5 * 0.25 / math.sqrt(first.numel())
    assert not torch.equal(first, second)


def test_the_first_layer_has_the_noise_of_the_ops():
    network = belief_network()
    value, log_q = bernoulli_sample(network.layers[0].guide(X[:, :2]), 6, key=KEY)
    drawn = network.draw(X[:, :2], 6, key=KEY)["h1"]
    torch.testing.assert_close((drawn.value, drawn.log_q), (value, log_q), rtol=0, atol=0)
    pair = gaussian_pair()
    loc, log_var = pair.layers[0].guide(X[:, :2]).chunk(2, -1)
    z, *_ = gaussian_rsample(loc, log_var=log_var, num_samples=6, key=KEY)
    torch.testing.assert_close(pair.draw(X[:, :2], 6, key=KEY)["h1"].value, z, rtol=0, atol=0)


def test_log_q_is_the_density_of_the_samples():
    network = three_families()
    for d in network.draw(X, 6, key=KEY).values():
        distribution = {
            "gaussian": lambda loc, log_var: torch.distributions.Normal(loc, (log_var / 2).exp()),
            "bernoulli": lambda logits: torch.distributions.Bernoulli(logits=logits),
            "categorical": lambda logits: torch.distributions.OneHotCategorical(logits=logits),
        }[d.layer.family](*d.given)
        log_q = distribution.log_prob(d.value)
        expected = log_q if d.layer.family == "categorical" else log_q.sum(-1)
        torch.testing.assert_close(d.log_q, expected)


def test_classes_are_drawn_by_their_probabilities():
    layer = fastvi.StochasticLayer("categorical", 4, guide=lambda x: x)
    network = fastvi.HierarchicalVAE([layer], linear(4, 4))
    p = torch.tensor([0.1, 0.0, 0.6, 0.3]).double()
    value = network.draw(p.log()[None], 100_000, key=KEY)["h1"].value.squeeze(1)
    assert (value.sum(-1) == 1).all()
    assert ((value.mean(0) - p).abs() <= 5 * (p * (1 - p) / 100_000).sqrt()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_other_dtypes_and_devices_train(dtype: torch.dtype, device: str):
    network = three_families().to(device, dtype)
    network.loss(X.to(device, dtype), objectives.VIMCO(4)).backward()
    assert network.sample(3).device.type == device
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in network.parameters())


# ---- pictures ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("build", "x"), MODELS)
def test_samples_and_reconstructions(build, x: Tensor):
    network = build()
    assert network.reconstruct(x).shape == x.shape
    generator = torch.Generator().manual_seed(1)
    drawn = network.sample(6, generator=generator)
    assert drawn.shape == (6, x.shape[-1])
    torch.testing.assert_close(network.sample(6, generator=generator.manual_seed(1)), drawn)
    assert network.sample(6, mean=True).shape == drawn.shape


def test_samples_are_of_the_model():
    x = chain().sample(100_000, generator=torch.Generator().manual_seed(0))
    variance = B**2 * (A**2 + MIDDLE**2) + NOISE**2
    assert abs(x.mean()) < 5 * math.sqrt(variance / 100_000)
    assert abs(x.var() - variance) < 5 * variance * math.sqrt(2 / 100_000)


# ---- bad input -----------------------------------------------------------------------------------
def layer(family: str = "bernoulli", features: int = 3, inputs: int = 5, **options):
    return fastvi.StochasticLayer(family, features, guide=nn.Linear(inputs, features), **options)


def network_of(*layers: fastvi.StochasticLayer, **options) -> fastvi.HierarchicalVAE:
    return fastvi.HierarchicalVAE(layers, nn.Linear(3, 5), **options)


BAD_LAYERS = [
    pytest.param(lambda: layer("beta"), ValueError, "family .*'gaussian'.*got 'beta'", id="family"),
    pytest.param(
        lambda: fastvi.StochasticLayer("bernoulli", 0, guide=nn.Linear(5, 3)),
        ValueError,
        "features to be from 1",
        id="features",
    ),
    pytest.param(
        lambda: fastvi.StochasticLayer("bernoulli", 3, guide=4),
        TypeError,
        "guide .*got int",
        id="guide",
    ),
    pytest.param(
        lambda: layer(model=nn.Linear(2, 3), prior=torch.zeros(3)), ValueError, "both", id="both"
    ),
    pytest.param(
        lambda: layer(prior=torch.zeros(4), name="top"),
        ValueError,
        r"'top': expected prior logits to have shape \(3,\), got \(4,\)",
        id="prior's shape",
    ),
    pytest.param(
        lambda: layer("gaussian", prior=torch.zeros(3)),
        TypeError,
        r"prior to be \(loc, log_var\)",
        id="half a prior",
    ),
    pytest.param(lambda: layer(guide_inputs="x"), TypeError, "sequence of names", id="a name"),
    pytest.param(lambda: network_of(), ValueError, "at least one layer", id="no layer"),
    pytest.param(
        lambda: network_of(nn.Linear(3, 3)), TypeError, "StochasticLayer, got Linear", id="a module"
    ),
    pytest.param(
        lambda: network_of(layer(name="a"), layer(name="a")), ValueError, "different", id="twice"
    ),
    pytest.param(
        lambda: network_of(layer(guide_inputs=["h2"]), layer(inputs=3)),
        ValueError,
        r"guide_inputs of layer 'h1' to be among \('x',\), got \('h2',\)",
        id="a later layer",
    ),
    pytest.param(
        lambda: network_of(layer(model=nn.Linear(3, 3))), ValueError, "'h1', the last", id="last"
    ),
    pytest.param(
        lambda: network_of(
            layer(model=nn.Linear(3, 3), model_inputs=["h2"]),
            layer(inputs=3, model=nn.Linear(3, 3), model_inputs=["h1"]),
        ),
        ValueError,
        r"a circle of \['h1', 'h2'\]",
        id="circle",
    ),
    pytest.param(
        lambda: network_of(layer(), decoder_inputs=["z"]), ValueError, "decoder_inputs", id="inputs"
    ),
]


@pytest.mark.parametrize(("build", "error", "words"), BAD_LAYERS)
def test_bad_layers(build, error, words: str):
    with pytest.raises(error, match=words):
        build()


def wide_guide():
    return network_of(layer(), fastvi.StochasticLayer("gaussian", 2, guide=nn.Linear(3, 5)))


def wide_model():
    return network_of(
        fastvi.StochasticLayer("bernoulli", 3, guide=nn.Linear(5, 3), model=nn.Linear(3, 4)),
        layer(inputs=3),
    )


GOOD = torch.ones(7, 5)
BAD_DATA = [
    pytest.param(wide_guide, GOOD, 2, ValueError, r"guide of layer 'h2' .*2 features", id="guide"),
    pytest.param(wide_model, GOOD, 2, ValueError, r"model of layer 'h1' .*\(2, 7, 4\)", id="model"),
    pytest.param(wide_model, GOOD, 0, ValueError, "num_samples to be from 1", id="K=0"),
    pytest.param(wide_model, GOOD.long(), 2, TypeError, "x to be floating", id="integers"),
    pytest.param(wide_model, [1.0], 2, TypeError, "x to be a tensor", id="a list"),
    pytest.param(
        lambda: network_of(
            fastvi.StochasticLayer("bernoulli", 3, guide=lambda x: torch.zeros(2, 3))
        ),
        GOOD,
        2,
        ValueError,
        "guide of layer 'h1' to keep the batch",
        id="batch",
    ),
]


@pytest.mark.parametrize(("build", "x", "num_samples", "error", "words"), BAD_DATA)
def test_bad_data(build, x, num_samples: int, error, words: str):
    with pytest.raises(error, match=words):
        build().log_weights(x, num_samples)


@pytest.mark.parametrize("key", [torch.zeros(3).long(), torch.zeros(2)], ids=["three", "float"])
def test_bad_key(key: Tensor):
    with pytest.raises(ValueError, match=r"key to be an int64 tensor of shape \(2,\)"):
        network_of(layer()).log_weights(GOOD, 2, key=key)


def test_a_loss_of_another_kind():
    with pytest.raises(TypeError, match=r"one of fastvi.objectives, .*got MSELoss"):
        network_of(layer()).loss(GOOD, nn.MSELoss())
    with pytest.raises(ValueError, match=r"'h1' to be reparameterised, .* use VIMCO or Reinforce"):
        network_of(layer()).loss(GOOD, fastvi.IWLBLoss(4))
