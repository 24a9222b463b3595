"""A bound in Lightning's loop: what is logged, what is learned, and a run that is resumed."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastvi

lightning = pytest.importorskip("lightning")

from lightning.pytorch.callbacks import Callback  # noqa: E402

from fastvi.integrations.lightning import BoundModule  # noqa: E402

FEATURES, LATENT = 16, 3
pytestmark = pytest.mark.native


class Watch(Callback):
    """The losses that were trained on, and the bounds that were logged beside them."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.bounds: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].item())
        self.bounds.append(trainer.callback_metrics["train_bound_step"].item())


def digits() -> Tensor:
    torch.manual_seed(1)
    means = (torch.rand(3, FEATURES) < 0.5).float() * 0.8 + 0.1
    return torch.bernoulli(means[torch.arange(60) % 3])


def vae() -> fastvi.VAE:
    torch.manual_seed(2)
    encoder = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 2 * LATENT))
    return fastvi.VAE(encoder, nn.Linear(LATENT, FEATURES))


def module_of(model: nn.Module, *objective, **options) -> BoundModule:
    adam = functools.partial(torch.optim.Adam, lr=0.05)
    return BoundModule(model, *objective, optimizer=adam, **options)


def trainer_in(folder: Path, epochs: int, *callbacks: Callback):
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


@pytest.fixture(autouse=True)
def no_advice():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists.*")
        warnings.filterwarnings("ignore", ".*logging interval.*")
        yield


def test_two_epochs_learn_and_log_the_bounds(tmp_path: Path):
    x = digits()
    labelled = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=20)
    module = module_of(vae(), fastvi.IWLBLoss(8), held_out_samples=64)
    before = module.model.log_evidence(x, 500).mean()
    watch = Watch()
    trainer = trainer_in(tmp_path, 2, watch)
    trainer.fit(module, labelled, DataLoader(x, batch_size=len(x)))
    assert watch.bounds == [pytest.approx(-loss) for loss in watch.losses]
    assert len(watch.losses) == 6
    # The epoch's is the mean of its batches, which are of one size.
    logged = trainer.callback_metrics
    assert logged["train_bound_epoch"].item() == pytest.approx(sum(watch.bounds[3:]) / 3)
    after = module.model.log_evidence(x, 500).mean()
    assert after > before + 0.3
    assert logged["held_out_bound"].item() == pytest.approx(after.item(), abs=0.2)
    tested = trainer.test(module, labelled, verbose=False)
    assert tested[0]["test_bound"] == pytest.approx(after.item(), abs=0.2)


def test_a_resumed_run_ends_as_one_that_was_not_cut(tmp_path: Path):
    loader = DataLoader(digits(), batch_size=20)

    class Seeds(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
            torch.manual_seed(trainer.global_step)

    whole = module_of(vae(), fastvi.IWLBLoss(8))
    trainer_in(tmp_path, 2, Seeds()).fit(whole, loader)
    first = module_of(vae(), fastvi.IWLBLoss(8))
    trainer = trainer_in(tmp_path, 1, Seeds())
    trainer.fit(first, loader)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    resumed = module_of(vae(), fastvi.IWLBLoss(8))
    trainer_in(tmp_path, 2, Seeds()).fit(resumed, loader, ckpt_path=tmp_path / "first.ckpt")
    for cut, uncut, half in zip(
        resumed.parameters(), whole.parameters(), first.parameters(), strict=True
    ):
        torch.testing.assert_close(cut, uncut)
        assert not torch.equal(cut, half)


def test_a_pyro_program(tmp_path: Path):
    pyro = pytest.importorskip("pyro")
    import pyro.distributions as dist
    from pyro.nn import PyroModule

    from fastvi.integrations.pyro import Trace_IWLB

    class Model(PyroModule):
        def __init__(self, decoder: nn.Module) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), LATENT), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    class Guide(PyroModule):
        def __init__(self, encoder: nn.Module) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                loc, log_var = self.encoder(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, (0.5 * log_var).exp()).to_event(1))

    x, networks = digits(), vae()
    before = networks.log_evidence(x, 500).mean()
    # Batches of 25, 25 and 10: plates that change their size.
    loader = DataLoader(x, batch_size=25)
    with pyro.settings.context(module_local_params=True):
        elbo = Trace_IWLB(8)(Model(networks.decoder), Guide(networks.encoder))
        watch = Watch()
        trainer = trainer_in(tmp_path, 2, watch)
        trainer.fit(module_of(elbo), loader, loader)
    assert watch.bounds == [pytest.approx(-loss) for loss in watch.losses]
    assert networks.log_evidence(x, 500).mean() > before + 0.3
    assert -500 < trainer.callback_metrics["held_out_bound"] < 0


def test_deeper_networks_and_objectives_of_their_own():
    layer = fastvi.StochasticLayer("bernoulli", 4, guide=nn.Linear(FEATURES, 4))
    network = fastvi.HierarchicalVAE([layer], nn.Linear(4, FEATURES))
    module = BoundModule(network, fastvi.objectives.VIMCO(16), held_out_samples=20)
    module.training_step(digits(), 0).backward()
    assert network.decoder.weight.grad.abs().sum() > 0
    module.validation_step(digits(), 0)


def test_what_it_cannot_train_is_refused():
    with pytest.raises(TypeError, match="expected model to be a module, got function"):
        BoundModule(digits, fastvi.IWLBLoss(8))
    with pytest.raises(TypeError, match="to have loss and log_evidence, got Linear, which has not"):
        BoundModule(nn.Linear(2, 2), fastvi.IWLBLoss(8))
    with pytest.raises(ValueError, match="BoundModule: expected held_out_samples to be"):
        BoundModule(vae(), fastvi.IWLBLoss(8), held_out_samples=0)
    module = BoundModule(vae(), fastvi.IWLBLoss(8, reduction="none"))
    with pytest.raises(ValueError, match=r"the loss to be one number, got shape \(60,\)"):
        module.training_step(digits(), 0)


class Plain:
    """No module, but it has one."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def decode(self, z: Tensor) -> Tensor:
        return self.net(z)


def test_what_a_function_holds_is_trained_and_saved(tmp_path: Path):
    encoder, plain = nn.Linear(FEATURES, 2 * LATENT), Plain(nn.Linear(LATENT, FEATURES))
    free = nn.Parameter(torch.zeros(FEATURES))
    model = fastvi.VAE(lambda x: encoder(x + free), plain.decode)
    module = module_of(model, fastvi.IWLBLoss(4))
    parts = {id(p) for p in [*encoder.parameters(), *plain.net.parameters(), free]}
    assert parts == {id(p) for p in module.parameters()}
    assert "referred.model/decoder/self/net.weight" in module.state_dict()
    before = [p.detach().clone() for p in module.parameters()]
    trainer = trainer_in(tmp_path, 1)
    trainer.fit(module, DataLoader(TensorDataset(digits()), 20))
    for a, b in zip(before, module.parameters(), strict=True):
        assert not torch.equal(a, b)
    module.eval()
    assert not plain.net.training
    assert not hasattr(module_of(vae(), fastvi.IWLBLoss(4)), "referred")


def test_a_tensor_that_lightning_cannot_train_is_named():
    free = torch.zeros(FEATURES, requires_grad=True)
    model = fastvi.VAE(nn.Linear(FEATURES, 2 * LATENT), lambda z: z.sum(-1, True) + free)
    with pytest.warns(UserWarning, match="are not trained: model/decoder/free"):
        module_of(model, fastvi.IWLBLoss(4))
