"""Keys: torch's own generator is the one source of randomness."""

from __future__ import annotations

import pytest
import torch
from op_table import DEVICES
from torch import Tensor

import fastvi
from fastvi.ops import gaussian_rsample, new_key

on_devices = pytest.mark.parametrize("device", DEVICES)


@on_devices
def test_shape_and_dtype(device: str):
    key = new_key(device)
    assert key.shape == (2,)
    assert key.dtype == torch.int64
    assert key.device.type == device
    assert not key.requires_grad


@on_devices
def test_manual_seed_governs(device: str):
    keys = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        keys.append([new_key(device) for _ in range(3)])
    assert torch.equal(torch.stack(keys[0]), torch.stack(keys[1]))
    assert not torch.equal(torch.stack(keys[0]), torch.stack(keys[2]))


@on_devices
def test_no_key_comes_twice(device: str):
    keys = torch.stack([new_key(device) for _ in range(1000)]).cpu()
    for part, name in ((keys[:, 0], "seed"), (keys[:, 1] & 0xFFFFFFFF, "low half of stream")):
        assert len(part.unique()) == 1000, name
    # Both halves of the seed are in use: it is the key of Philox.
    for half in (keys[:, 0] & 0xFFFFFFFF, keys[:, 0] >> 32):
        assert len(half.unique()) > 990


@on_devices
def test_a_generator_of_ones_own(device: str):
    generator = torch.Generator(device).manual_seed(7)
    first = new_key(generator=generator)
    assert first.device.type == device
    before = torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    second = new_key(device, generator)
    after = torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    assert torch.equal(before, after), "the global generator moved"
    assert not torch.equal(first, second)
    generator.manual_seed(7)
    assert torch.equal(new_key(generator=generator), first)


def test_the_global_generator_moves():
    before = torch.get_rng_state()
    new_key()
    assert not torch.equal(before, torch.get_rng_state())


def test_device_as_text_or_object_or_default():
    for device in ("cpu", torch.device("cpu"), None):
        torch.manual_seed(0)
        key = new_key(device)
        torch.manual_seed(0)
        assert torch.equal(key, new_key())
    with torch.device("meta"):
        assert new_key().device.type == "meta"


@pytest.mark.cuda
def test_a_generator_elsewhere_is_refused():
    with pytest.raises((ValueError, RuntimeError), match=r"(?si)generator.*(cpu|cuda)"):
        new_key("cuda", torch.Generator("cpu"))


def test_tagged_as_random():
    """Untagged, compile with checkpoint gives silently wrong gradients."""
    tags = torch.ops.fastvi.new_key.default.tags
    assert torch.Tag.nondeterministic_seeded in tags
    pure = [
        name for name in dir(torch.ops.fastvi) if name.startswith(("gaussian", "bernoulli", "iwlb"))
    ]
    assert len(pure) >= 5
    for name in pure:
        assert torch.Tag.nondeterministic_seeded not in getattr(torch.ops.fastvi, name).default.tags


@on_devices
def test_opcheck(device: str):
    pytest.importorskip("expecttest", reason="opcheck imports it")
    torch.library.opcheck(
        torch.ops.fastvi.new_key.default,
        (),
        {"device": torch.device(device)},
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@pytest.mark.slow
@pytest.mark.native
@on_devices
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend: str, device: str, fresh_compiler):
    """The keys of eager, one after the other: neither folded into a constant nor shared."""

    def two_keys(x):
        return x * 2, new_key(x.device), new_key(x.device)

    x = torch.ones(3, device=device)
    runs = []
    for function in (two_keys, torch.compile(two_keys, backend=backend, fullgraph=True)):
        torch.manual_seed(11)
        runs.append(torch.stack([key for _ in range(3) for key in function(x)[1:]]))
    assert len(runs[0][:, 0].unique()) == 6
    assert torch.equal(runs[0], runs[1])


@on_devices
def test_an_op_without_a_key_draws_one(device: str):
    loc, log_var = torch.zeros(4, 3, device=device), torch.zeros(4, 3, device=device)
    torch.manual_seed(2)
    drawn = [gaussian_rsample(loc, log_var=log_var, num_samples=5)[0] for _ in range(2)]
    torch.manual_seed(2)
    given = [
        gaussian_rsample(loc, log_var=log_var, num_samples=5, key=new_key(device))[0]
        for _ in range(2)
    ]
    assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(drawn, given, rtol=0, atol=0)


# ---- under torch.func ---------------------------------------------------------------------------
def draw(loc: Tensor) -> Tensor:
    return gaussian_rsample(loc, scale=torch.ones(4), num_samples=1)[0]


@pytest.mark.native
def test_vmap_asks_for_a_randomness():
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(draw)(torch.zeros(2, 4))


@pytest.mark.native
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_draws_as_it_is_told(randomness: str):
    z = torch.func.vmap(draw, randomness=randomness)(torch.zeros(3, 4))
    distinct = len({tuple(row.flatten().tolist()) for row in z})
    assert distinct == {"same": 1, "different": 3}[randomness]


@pytest.mark.native
def test_the_generator_is_honoured_under_a_transform():
    generator = torch.Generator()

    def draws(x: Tensor) -> Tensor:
        return new_key(generator=generator) + x

    generator.manual_seed(7)
    expected = new_key(generator=generator)
    generator.manual_seed(7)
    x = torch.zeros(3, 1, dtype=torch.int64)
    assert torch.equal(torch.func.vmap(draws, randomness="same")(x), expected.expand(3, 2))


@pytest.mark.native
def test_a_gradient_for_each_datum():
    """vmap of grad of a loss: each datum has noise of its own, and the gradient of that noise."""

    def loss(loc: Tensor) -> Tensor:
        log_var = torch.zeros_like(loc)
        return fastvi.iwlb_loss(
            loc, log_var, lambda z: -z.square().sum(-1), num_samples=3, estimator="iwae"
        )

    gradients = torch.func.vmap(torch.func.grad(loss), randomness="different")(torch.zeros(5, 1, 2))
    assert len(gradients.flatten(1).unique(dim=0)) == 5


@pytest.mark.native
def test_forward_mode_of_weighted_paths_is_refused():
    def loss(loc: Tensor) -> Tensor:
        return fastvi.iwlb_loss(loc, loc, lambda z: z.sum(-1), num_samples=3, estimator="dreg")

    x = torch.zeros(2, 2)
    with pytest.raises(RuntimeError, match="reverse-mode gradient for estimator 'dreg'.*'iwae'"):
        torch.func.jvp(loss, (x,), (x,))


@pytest.mark.native
def test_compiled_without_a_device(fresh_compiler):
    compiled = torch.compile(lambda: new_key(), fullgraph=True, backend="eager")
    torch.manual_seed(3)
    key = compiled()
    torch.manual_seed(3)
    assert torch.equal(key, new_key())
