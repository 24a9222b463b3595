"""Run by torchrun with two processes: sharded and replicated networks, with chunks and without."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from leaving import leave
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import fastvi

BATCH, LATENT, FEATURES, STEPS = 4, 3, 6, 3
KEY = torch.tensor([5, 7])
Gradients = list[dict[str, Tensor]]
Wrap = Callable[[fastvi.VAE], nn.Module]


def model() -> tuple[fastvi.VAE, Tensor]:
    """A model, the same everywhere, and the data of all ranks for every step."""
    torch.manual_seed(1)
    hidden = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    decoder = nn.Sequential(nn.Linear(LATENT, 8), nn.Tanh(), hidden, nn.Linear(8, FEATURES))
    prior = (nn.Parameter(0.3 * torch.randn(LATENT)), nn.Parameter(0.1 * torch.randn(LATENT)))
    vae = fastvi.VAE(nn.Linear(FEATURES, 2 * LATENT), decoder, prior=prior).double()
    return vae, (torch.rand(STEPS, 2 * BATCH, FEATURES) > 0.5).double()


def whole(value: Tensor) -> Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


def alone() -> dict[str, Tensor]:
    """The gradient of the first step, without any process but this: the mean of two ranks'."""
    halves = []
    for half in (0, 1):
        vae, x = model()
        vae(x[0].chunk(2)[half], fastvi.IWLBLoss(7, "dreg"), key=KEY).backward()
        halves.append(gradients(vae))
    return {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}


def train(wrap: Wrap, criterion: nn.Module, *, same_data: bool = False) -> Gradients:
    """Some steps of an optimiser; the gradients of each, of whole parameters."""
    vae, x = model()
    wrapped = wrap(vae)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.05)
    steps = []
    for number in range(STEPS):
        optimizer.zero_grad()
        data = x[number] if same_data else x[number].chunk(2)[dist.get_rank()]
        wrapped(
            data.to(next(vae.encoder.parameters()).dtype), criterion, key=KEY + number
        ).backward()
        steps.append(gradients(vae))
        optimizer.step()
    return steps


def gradients(vae: nn.Module) -> dict[str, Tensor]:
    return {name: whole(p.grad) for name, p in vae.named_parameters() if p.grad is not None}


def close(found: Gradients, expected: Gradients, tolerance: float = 1e-9) -> None:
    assert len(found) == len(expected)
    for step, others in zip(found, expected, strict=True):
        assert list(step) == list(others)
        for name, grad in step.items():
            torch.testing.assert_close(grad, others[name], rtol=tolerance, atol=tolerance)


# ---- ways of wrapping ---------------------------------------------------------------------------
def sharded(*places: str, **options: object) -> Wrap:
    def wrap(vae: fastvi.VAE) -> nn.Module:
        mesh = init_device_mesh("cpu", (2,))
        if "layers" in places:
            for layer in vae.decoder:
                if list(layer.parameters()):
                    fully_shard(layer, mesh=mesh, **options)
        if "module" in places:
            fully_shard(vae.decoder, mesh=mesh, **options)
        if "root" in places:
            fully_shard(vae, mesh=mesh, **options)
        return vae

    return wrap


def replicated(place: str, **options: object) -> Wrap:
    def wrap(vae: fastvi.VAE) -> nn.Module:
        if place == "root":
            return DistributedDataParallel(vae, **options)
        vae.decoder = DistributedDataParallel(vae.decoder, **options)
        return vae

    return wrap


def by_columns_and_rows(vae: fastvi.VAE) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    vae.decoder = nn.Sequential(vae.decoder[0], nn.Tanh(), vae.decoder[3])
    parallelize_module(vae.decoder, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    parallelize_module(vae.encoder, mesh, ColwiseParallel(output_layouts=Replicate()))
    return vae


WRAPS: dict[str, Wrap] = {
    "root": sharded("root"),
    "root, resharded": sharded("root", reshard_after_forward=True),
    "module": sharded("module"),
    "module, resharded": sharded("module", reshard_after_forward=True),
    "layers": sharded("layers"),
    "layers, not resharded": sharded("layers", reshard_after_forward=False),
    "layers and module": sharded("layers", "module"),
    "all": sharded("layers", "module", "root"),
    "all, resharded": sharded("layers", "module", "root", reshard_after_forward=True),
    "layers and root, not resharded": sharded("layers", "root", reshard_after_forward=False),
    "replicated": replicated("root"),
    "replicated decoder": replicated("decoder"),
    "replicated decoder, looking for unused": replicated("decoder", find_unused_parameters=True),
}
LOSSES: dict[str, Callable[..., nn.Module]] = {
    "dreg": lambda **options: fastvi.IWLBLoss(7, "dreg", **options),
    "rws": lambda **options: fastvi.IWLBLoss(7, "rws", **options),
    "piwae": lambda **options: fastvi.PIWAELoss(2, 4, estimator="dreg", **options),
    "elbo": lambda **options: fastvi.ELBOLoss(7, **options),
    "jackknife": lambda **options: fastvi.JackknifeLoss(7, **options),
}


def chunks() -> Iterator[dict[str, object]]:
    for size in (7, 3, 1):
        yield {"chunk_size": size}


# ---- checks -------------------------------------------------------------------------------------
def check_wraps() -> None:
    """One process is the oracle of all samples at once, and these of chunks."""
    for name, wrap in WRAPS.items():
        expected = train(wrap, fastvi.IWLBLoss(7, "dreg"))
        if name in ("root", "replicated", "all"):
            close(expected[:1], [alone()])
        for options in chunks():
            close(train(wrap, fastvi.IWLBLoss(7, "dreg", **options)), expected)


def check_losses() -> None:
    for make in LOSSES.values():
        for name in ("layers and module", "all, resharded"):
            expected = train(WRAPS[name], make())
            for options in chunks():
                close(train(WRAPS[name], make(**options)), expected)


def check_columns_and_rows() -> None:
    for make in LOSSES.values():
        expected = train(by_columns_and_rows, make(), same_data=True)
        for options in chunks():
            close(train(by_columns_and_rows, make(**options), same_data=True), expected)


def check_mixed_precision() -> None:
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32)

    def wrap(vae: fastvi.VAE) -> nn.Module:
        return sharded("layers", "module", mp_policy=policy)(vae.float())

    expected = train(wrap, fastvi.IWLBLoss(7, "dreg"))
    for size in (7, 3):
        # Gradients that were rounded to eight bits, at most once for each layer.
        close(
            train(wrap, fastvi.IWLBLoss(7, "dreg", chunk_size=size))[:1], expected[:1], 4 * 2.0**-8
        )


def check_accumulation() -> None:
    """Three batches for one step, of which the last alone meets the other rank's."""

    def accumulate(wrap: Wrap, chunk_size: int | None) -> Gradients:
        vae, x = model()
        wrapped = wrap(vae)
        criterion = fastvi.IWLBLoss(7, "dreg", chunk_size=chunk_size)
        for number in range(STEPS):
            is_last = number == STEPS - 1
            without = contextlib.nullcontext()
            if isinstance(wrapped, DistributedDataParallel) and not is_last:
                without = wrapped.no_sync()
            elif not isinstance(wrapped, DistributedDataParallel):
                vae.decoder.set_requires_gradient_sync(is_last)
            with without:
                wrapped(x[number].chunk(2)[dist.get_rank()], criterion, key=KEY + number).backward()
        return [gradients(vae)]

    for name in ("replicated", "module", "layers and module"):
        expected = accumulate(WRAPS[name], None)
        for size in (7, 3):
            close(accumulate(WRAPS[name], size), expected)


def check_objectives() -> None:
    def fit(wrap: Wrap, chunk_size: int | None) -> Gradients:
        vae, x = model()
        wrap(vae)
        torch.manual_seed(3)
        optimizer = torch.optim.SGD(vae.parameters(), lr=0.05)
        objective = fastvi.objectives.IWLB(7, chunk_size=chunk_size)
        svi = fastvi.SVI(*vae.as_model_and_guide(), optimizer, objective)
        steps = []
        for data in x:
            svi.step(data.chunk(2)[dist.get_rank()])
            steps.append({name: whole(p) for name, p in vae.named_parameters()})
        return steps

    for name in ("module, resharded", "layers", "layers and module", "replicated decoder"):
        expected = fit(WRAPS[name], None)
        for size in (7, 3):
            close(fit(WRAPS[name], size), expected)


def check_refusals() -> None:
    vae, x = model()
    static = replicated("decoder", static_graph=True)(vae)
    raises("static_graph=False", lambda: static(x[0], fastvi.IWLBLoss(7, chunk_size=3), key=KEY))
    vae, x = model()
    layers = WRAPS["layers"](vae)
    auto = fastvi.IWLBLoss(7, chunk_size="auto")
    raises("expected chunk_size to be a number", lambda: layers(x[0], auto, key=KEY))
    shared = fastvi.IWLBLoss(7, chunk_size=3, group=dist.group.WORLD)
    raises("1 to 2 chunks", lambda: layers(x[0], shared, key=KEY))


def raises(words: str, run: Callable[[], object]) -> None:
    try:
        run()
    except (ValueError, RuntimeError) as error:
        assert words in str(error), str(error)
    else:
        raise AssertionError(f"expected an error that says {words!r}")


def check_pyro() -> None:
    import pyro
    import pyro.distributions as laws

    from fastvi.integrations.pyro import Trace_IWLB

    def fit(wrap: Wrap, elbo: Trace_IWLB) -> Gradients:
        pyro.clear_param_store()
        vae, x = model()
        wrap(vae)
        optimizer = torch.optim.SGD(vae.parameters(), lr=0.05)

        def program(data: Tensor) -> None:
            with pyro.plate("data", len(data)):
                prior = laws.Normal(data.new_zeros(len(data), LATENT), 1.0).to_event(1)
                z = pyro.sample("z", prior)
                logits = vae.decode(z)
                pyro.sample("x", laws.Bernoulli(logits=logits).to_event(1), obs=data)

        def guide(data: Tensor) -> None:
            loc, log_var = vae.encode(data)
            with pyro.plate("data", len(data)):
                pyro.sample("z", laws.Normal(loc, (0.5 * log_var).exp()).to_event(1))

        steps = []
        for number, data in enumerate(x):
            optimizer.zero_grad()
            torch.manual_seed(number)
            elbo.differentiable_loss(program, guide, data.chunk(2)[dist.get_rank()]).backward()
            steps.append(gradients(vae))
            optimizer.step()
        return steps

    for name in ("module", "layers and module", "layers, not resharded", "replicated decoder"):
        expected = fit(WRAPS[name], Trace_IWLB(7, "dreg"))
        for size in (7, 3, 1):
            close(fit(WRAPS[name], Trace_IWLB(7, "dreg", chunk_size=size)), expected)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for check in sys.argv[1:]:
        globals()[f"check_{check}"]()
        dist.barrier()
    leave()
