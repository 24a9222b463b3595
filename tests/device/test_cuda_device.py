"""What only a CUDA card can show: graphs, streams, and the noise of the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from threading import Thread

import pytest
import torch
from torch import Tensor, nn

import fastvi
from fastvi.ops import (
    bernoulli_log_prob,
    categorical_log_prob,
    gaussian_kl,
    gaussian_log_prob,
    gaussian_rsample,
    iwlb,
    laplace_log_prob,
    leave_one_out,
    linear_bernoulli_log_prob,
    linear_gaussian_log_prob,
    linear_poisson_log_prob,
    negative_binomial_log_prob,
    new_key,
    poisson_log_prob,
    zero_inflated_negative_binomial_log_prob,
)

pytestmark = [pytest.mark.cuda, pytest.mark.native]

KEY = (0x0123456789ABCDEF, 0x0FEDCBA987654321)


@functools.cache
def key_on(device: str) -> Tensor:
    return torch.tensor(KEY, device=device)


# ---- the noise ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "num_samples", "offset"),
    [
        pytest.param((64, 50), 100, 0, id="wide"),
        pytest.param((4096, 2), 33, 0, id="narrow"),
        pytest.param((1, 1), 100_003, 0, id="one feature"),
        pytest.param((3, 1_000_003), 1, 0, id="a network's weights"),
        pytest.param((7, 13), 5, 2**33 + 1, id="offset past 32 bits"),
    ],
)
def test_noise_is_bit_equal_to_that_of_the_cpu(shape, num_samples, offset):
    def noise(device: str) -> Tensor:
        zero, one = torch.zeros(shape, device=device), torch.ones(shape, device=device)
        z, _, _ = gaussian_rsample(
            zero, scale=one, num_samples=num_samples, key=key_on(device), sample_offset=offset
        )
        return z.cpu()

    assert torch.equal(noise("cuda").view(torch.int32), noise("cpu").view(torch.int32))


# ---- CUDA graphs --------------------------------------------------------------------------------
def capture(step: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Warm up on a side stream, as torch asks for, and record one call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def test_graph_replays_draw_fresh_noise_that_the_seed_governs():
    zero = torch.zeros(64, 50, device="cuda")
    out: dict[str, Tensor] = {}

    def draw() -> None:
        out["z"], _, _ = gaussian_rsample(zero, scale=torch.ones_like(zero), num_samples=100)

    graph = capture(draw)

    def replays(count: int) -> list[Tensor]:
        torch.cuda.manual_seed(3)
        drawn = []
        for _ in range(count):
            graph.replay()
            drawn.append(out["z"].clone())
        return drawn

    first, second = replays(4), replays(4)
    for number, z in enumerate(first):
        assert abs(z.mean().item()) < 0.01
        assert abs(z.std().item() - 1.0) < 0.01
        assert torch.equal(z, second[number])
        for other in first[:number]:
            assert (z == other).float().mean().item() < 1e-4


@pytest.mark.parametrize(
    "estimator", [pytest.param(name, id=name) for name in ("dreg", "iwae", "stl")]
)
def test_graph_of_a_training_step_is_the_step_with_fresh_noise(estimator):
    encoder = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 16)).cuda()
    decoder = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 64)).cuda()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    criterion = fastvi.IWLBLoss(num_samples=50, estimator=estimator)
    x = (torch.rand(20, 64, device="cuda") > 0.5).float()
    kept: dict[str, Tensor] = {}

    def gradients(key: Tensor) -> None:
        for parameter in parameters:
            parameter.grad = None
        loc, log_var = encoder(x).chunk(2, -1)

        def log_likelihood(z: Tensor) -> Tensor:
            kept["z"] = z.detach()
            return bernoulli_log_prob(x, decoder(z))

        loss = criterion(loc, log_var, log_likelihood, key=key)
        loss.backward()
        kept["loss"] = loss.detach()

    def step() -> None:
        kept["key"] = new_key("cuda")
        gradients(kept["key"])

    graph = capture(step)
    static = dict(kept)
    static_gradients = [parameter.grad for parameter in parameters]
    seen = []
    for _ in range(3):
        graph.replay()
        replayed = {name: tensor.clone() for name, tensor in static.items()}
        replayed_gradients = [gradient.clone() for gradient in static_gradients]
        gradients(replayed["key"])
        torch.testing.assert_close(replayed["z"], kept["z"])
        torch.testing.assert_close(replayed["loss"], kept["loss"])
        torch.testing.assert_close(replayed_gradients, [p.grad for p in parameters])
        seen.append(replayed)
    keys = {tuple(replayed["key"].tolist()) for replayed in seen}
    assert len(keys) == len(seen)
    assert len({replayed["loss"].item() for replayed in seen}) == len(seen)


def test_graph_of_a_training_step_learns():
    encoder = nn.Linear(16, 8).cuda()
    decoder = nn.Linear(4, 16).cuda()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2, capturable=True)
    criterion = fastvi.IWLBLoss(num_samples=16)
    x = (torch.arange(16, device="cuda") % 3 == 0).float().expand(20, 16).contiguous()
    kept: dict[str, Tensor] = {}

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loc, log_var = encoder(x).chunk(2, -1)
        loss = criterion(loc, log_var, lambda z: bernoulli_log_prob(x, decoder(z)))
        loss.backward()
        optimizer.step()
        kept["loss"] = loss.detach()

    graph = capture(step)
    graph.replay()
    before = kept["loss"].item()
    for _ in range(300):
        graph.replay()
    assert kept["loss"].item() < 0.5 * before


# ---- streams ------------------------------------------------------------------------------------
def _sampler(loc: Tensor, log_var: Tensor) -> tuple[Tensor, ...]:
    return gaussian_rsample(loc, log_var=log_var, num_samples=20, key=key_on("cuda"))


def _likelihood(value: Tensor, loc: Tensor, log_var: Tensor) -> Tensor:
    return gaussian_log_prob(value, loc, log_var=log_var)


def _laplace(value: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    return laplace_log_prob(value, loc, log_scale=log_scale)


def _categorical(logits: Tensor) -> Tensor:
    classes = torch.arange(logits.shape[-2], device=logits.device) % logits.shape[-1]
    return categorical_log_prob(classes, logits)


def _linear_gaussian(hidden: Tensor, weight: Tensor, value: Tensor, scale: Tensor) -> Tensor:
    return linear_gaussian_log_prob(hidden, weight, None, value, scale=1.0 + scale)


# The op, the shapes of its inputs, and which of them need gradients.
_VALUE, _ROWS = (64, 784), (20, 64, 784)
_LINEAR = [(200, 64, 50), (784, 50), (784,), _VALUE]
OPS = [
    pytest.param(_sampler, [(64, 50), (64, 50)], (0, 1), id="gaussian_rsample"),
    pytest.param(bernoulli_log_prob, [(64, 784), (20, 64, 784)], (1,), id="bernoulli_log_prob"),
    pytest.param(_likelihood, [(64, 784), (20, 64, 784), (784,)], (1, 2), id="gaussian_log_prob"),
    pytest.param(gaussian_kl, [(4096, 50), (4096, 50)], (0, 1), id="gaussian_kl"),
    pytest.param(iwlb, [(50_000, 64)], (0,), id="iwlb"),
    pytest.param(leave_one_out, [(50_000, 64)], (0,), id="leave_one_out"),
    pytest.param(_laplace, [_VALUE, _ROWS, (784,)], (1, 2), id="laplace_log_prob"),
    pytest.param(poisson_log_prob, [_VALUE, _ROWS], (1,), id="poisson_log_prob"),
    pytest.param(
        negative_binomial_log_prob,
        [_VALUE, _ROWS, (784,)],
        (1, 2),
        id="negative_binomial_log_prob",
    ),
    pytest.param(
        zero_inflated_negative_binomial_log_prob,
        [_VALUE, _ROWS, (784,), _ROWS],
        (1, 2, 3),
        id="zero_inflated_negative_binomial_log_prob",
    ),
    pytest.param(_categorical, [(500, 64, 100)], (0,), id="categorical_log_prob"),
    pytest.param(linear_bernoulli_log_prob, _LINEAR, (0, 1, 2), id="linear_bernoulli_log_prob"),
    pytest.param(
        _linear_gaussian,
        [_LINEAR[0], _LINEAR[1], _VALUE, (784,)],
        (0, 1, 3),
        id="linear_gaussian_log_prob",
    ),  # fmt: skip
    pytest.param(linear_poisson_log_prob, _LINEAR, (0, 1, 2), id="linear_poisson_log_prob"),
]


def both_passes(
    op: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor], trained: Sequence[int]
) -> list[Tensor]:
    inputs = [x.detach().requires_grad_(number in trained) for number, x in enumerate(inputs)]
    outputs = op(*inputs)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    upstream = [out.detach().cos() for out in outputs]
    gradients = torch.autograd.grad(outputs, [inputs[number] for number in trained], upstream)
    return [*(out.detach() for out in outputs), *gradients]


@pytest.mark.parametrize(("op", "shapes", "trained"), OPS)
def test_kernels_run_on_the_current_stream(op, shapes, trained):
    values = [torch.rand(shape, device="cuda") for shape in shapes]
    expected = both_passes(op, values, trained)
    late = [torch.full_like(x, torch.nan) for x in values]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        # The inputs come to be long after the launch: a kernel on another stream would see NaN.
        torch.cuda._sleep(100_000_000)
        for x, value in zip(late, values, strict=True):
            x.copy_(value)
        found = both_passes(op, late, trained)
    side.synchronize()
    for ours, true in zip(found, expected, strict=True):
        assert torch.equal(ours, true)


@pytest.mark.parametrize(("op", "shapes", "trained"), OPS)
def test_two_streams_do_not_disturb_each_other(op, shapes, trained):
    inputs = [
        [torch.rand(shape, device="cuda") + number for shape in shapes] for number in range(2)
    ]
    expected = [both_passes(op, values, trained) for values in inputs]
    torch.cuda.synchronize()
    wrong: list[int] = []
    finished: list[int] = []

    def work(number: int) -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(20):
                found = both_passes(op, inputs[number], trained)
                for ours, true in zip(found, expected[number], strict=True):
                    if not torch.equal(ours, true):
                        wrong.append(number)
        stream.synchronize()
        finished.append(number)

    threads = [Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(finished) == [0, 1]
    assert not wrong


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")
@pytest.mark.parametrize(("op", "shapes", "trained"), OPS)
def test_a_second_card_gives_the_bits_of_the_first(op, shapes, trained):
    """Which is not the current one: the kernels go where the tensors are."""
    inputs = [torch.rand(shape) for shape in shapes]
    first, second = (
        both_passes(op, [x.to(card) for x in inputs], trained) for card in ("cuda:0", "cuda:1")
    )
    assert torch.cuda.current_device() == 0
    for here, there in zip(first, second, strict=True):
        assert there.device == torch.device("cuda:1")
        torch.testing.assert_close(there.cpu(), here.cpu(), rtol=0, atol=0)
