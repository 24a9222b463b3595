"""BoundMixin and bounded(): scvi-tools' models trained by our bounds, against scvi-tools' parts."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fastvi

scvi = pytest.importorskip("scvi")
from scvi.module._constants import MODULE_KEYS as KEYS  # noqa: E402

from fastvi.integrations.scvi import BoundMixin, bounded  # noqa: E402

pytestmark = [pytest.mark.native, pytest.mark.filterwarnings("ignore")]
logging.getLogger("scvi").setLevel(logging.ERROR)
logging.getLogger("lightning").setLevel(logging.ERROR)

KINDS = {
    "nb": {"gene_likelihood": "nb"},
    "zinb": {},
    "poisson": {"gene_likelihood": "poisson"},
    "normal": {"gene_likelihood": "normal"},
    "library": {"use_observed_lib_size": False},
    "logistic normal": {"latent_distribution": "ln"},
    "embedding": {"batch_representation": "embedding"},
    "by batch": {"dispersion": "gene-batch", "encode_covariates": True, "n_layers": 2},
    "by cell": {"dispersion": "gene-cell", "gene_likelihood": "nb"},
}


@pytest.fixture(scope="module")
def adata():
    scvi.settings.seed = 0
    made = scvi.data.synthetic_iid(batch_size=30, n_genes=12)
    scvi.model.SCVI.setup_anndata(made, batch_key="batch")
    return made


def model_of(adata, objective, kind=scvi.model.SCVI, **options):
    Model = bounded(kind, objective)
    Model.setup_anndata(adata, batch_key="batch")
    torch.manual_seed(0)
    return Model(adata, n_latent=3, n_hidden=16, **options)


def batch_of(model, adata) -> dict[str, Tensor]:
    return next(iter(model._make_data_loader(adata=adata, batch_size=40)))


def log_weights(module, tensors, inferred, num_samples: int) -> Tensor:
    """log w of the samples that a loss would draw next, by the module's own parts."""
    qz, ql = inferred[KEYS.QZ_KEY], inferred[KEYS.QL_KEY]
    loc, scale = qz.loc, qz.scale
    if ql is not None:
        loc, scale = torch.cat([loc, ql.loc], -1), torch.cat([scale, ql.scale], -1)
    drawn, _, _ = fastvi.ops.gaussian_rsample(loc, log_var=2 * scale.log(), num_samples=num_samples)
    log_q = torch.distributions.Normal(loc, scale).log_prob(drawn).sum(-1)
    log_w = []
    for one in drawn:
        z = one if ql is None else one[:, :-1]
        log_pz = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
        inner = {**inferred, KEYS.Z_KEY: module.z_encoder.z_transformation(z)}
        if ql is not None:
            inner[KEYS.LIBRARY_KEY] = one[:, -1:]
        p = module.generative(**module._get_generative_input(tensors, inner))
        if ql is not None:
            log_pz = log_pz + p[KEYS.PL_KEY].log_prob(one[:, -1:]).sum(-1)
        log_w.append(p[KEYS.PX_KEY].log_prob(tensors["X"]).sum(-1) + log_pz)
    return torch.stack(log_w) - log_q


@pytest.mark.parametrize("options", list(KINDS.values()), ids=list(KINDS))
def test_the_bound_is_that_of_scvi_s_own_parts(adata, options):
    """Value and decoder's gradient, at the same noise; eval mode, so that no dropout draws."""
    model = model_of(adata, fastvi.IWLBLoss(num_samples=6), **options)
    # scvi-tools makes float32 of the batches of these, whatever the module is.
    narrow = "use_observed_lib_size" in options or options.get("dispersion") == "gene-batch"
    dtype = torch.float32 if narrow else torch.float64
    module = model.module.eval().to(dtype)
    tensors = batch_of(model, adata)
    tensors["X"] = tensors["X"].to(dtype)
    inferred = module.inference(**module._get_inference_input(tensors))
    torch.manual_seed(5)
    got = module.loss(tensors, inferred, {})
    got.loss.backward(retain_graph=True)
    decoder = {
        name: one.grad.clone()
        for name, one in module.named_parameters()
        if name.startswith("decoder") and one.grad is not None
    }
    module.zero_grad()
    torch.manual_seed(5)
    log_w = log_weights(module, tensors, inferred, num_samples=6)
    expected = torch.logsumexp(log_w, 0) - math.log(6)
    (-expected.mean()).backward()
    # scvi-tools adds 1e-8 to means, dispersions and counts.
    close = {"rtol": 1e-4, "atol": 1e-3} if narrow else {"rtol": 1e-6, "atol": 1e-5}
    assert_close(got.reconstruction_loss["reconstruction_loss"], -expected, **close)
    assert decoder
    for name, grad in decoder.items():
        assert_close(grad, module.get_parameter(name).grad, **close)


@pytest.mark.parametrize("options", [KINDS["nb"], KINDS["library"]], ids=["nb", "library"])
def test_chunks_change_nothing(adata, options):
    losses = []
    for chunk_size in (None, 2, 5):
        model = model_of(adata, fastvi.IWLBLoss(num_samples=7, chunk_size=chunk_size), **options)
        module, tensors = model.module.eval(), batch_of(model, adata)
        torch.manual_seed(2)
        inferred = module.inference(**module._get_inference_input(tensors))
        loss = module.loss(tensors, inferred, {}).loss
        loss.backward()
        losses.append((loss.item(), module.decoder.px_decoder.fc_layers[0][0].weight.grad))
    for value, grad in losses[1:]:
        assert value == pytest.approx(losses[0][0], rel=1e-5)
        assert_close(grad, losses[0][1], rtol=1e-3, atol=1e-4)


def test_warm_up_is_scvi_s_at_its_start(adata):
    model = model_of(adata, fastvi.IWLBLoss(num_samples=4), gene_likelihood="nb")
    module, tensors = model.module.eval(), batch_of(model, adata)
    inferred, decoded = module.forward(tensors, compute_loss=False)
    stock = scvi.module.VAE.loss(module, tensors, inferred, decoded, kl_weight=0.0).loss
    assert_close(
        module.loss(tensors, inferred, {}, kl_weight=0.0).loss, stock, rtol=1e-5, atol=1e-3
    )
    torch.manual_seed(0)
    whole = module.loss(tensors, inferred, {}).loss
    torch.manual_seed(0)
    half = module.loss(tensors, inferred, {}, kl_weight=0.5).loss
    assert_close(half, 0.5 * whole + 0.5 * stock, rtol=1e-5, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nb", "zinb", "library", "embedding"])
def test_marginal_log_likelihood_is_scvi_s_own(adata, name):
    model = model_of(adata, fastvi.IWLBLoss(num_samples=5), **KINDS[name])
    model.train(max_epochs=8, accelerator="cpu", enable_progress_bar=False)
    stock = scvi.model.SCVI(adata, n_latent=3, n_hidden=16, **KINDS[name])
    stock.module.load_state_dict(model.module.state_dict())
    stock.is_trained = True
    stock.module.eval()
    runs = [
        torch.tensor([one.get_marginal_ll(n_mc_samples=300) for _ in range(4)])
        for one in (model, stock)
    ]
    spread = float(sum(run.var() / len(run) for run in runs)) ** 0.5
    assert abs(runs[0].mean() - runs[1].mean()) < 5 * spread + 1e-3
    of_each = model.get_marginal_ll(n_mc_samples=300, return_mean=False, n_mc_samples_per_pass=7)
    assert of_each.shape == (adata.n_obs,)
    assert of_each.mean().item() == pytest.approx(runs[0].mean().item(), abs=10 * spread + 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        fastvi.IWLBLoss(num_samples=5, estimator="dreg", chunk_size=2),
        fastvi.IWLBLoss(num_samples=5, estimator="stl"),
        fastvi.IWLBLoss(num_samples=5, estimator="rws"),
        fastvi.ELBOLoss(num_samples=2),
        fastvi.CIWAELoss(num_samples=4, beta=0.5),
    ],
    ids=["dreg in chunks", "stl", "rws", "elbo", "ciwae"],
)
def test_it_learns(adata, objective, tmp_path):
    model = model_of(adata, objective, gene_likelihood="nb")
    model.module.eval()
    before = model.get_marginal_ll(n_mc_samples=50)
    model.module.train()
    model.train(
        max_epochs=20,
        batch_size=16,
        accelerator="cpu",
        enable_progress_bar=False,
        check_val_every_n_epoch=5,
        train_size=0.8,
        plan_kwargs={"n_epochs_kl_warmup": 3, "lr": 5e-3},
    )
    assert model.get_marginal_ll(n_mc_samples=50) > before + 1.0
    assert math.isfinite(model.history["elbo_validation"].iloc[-1].item())
    assert model.get_latent_representation().shape == (adata.n_obs, 3)
    assert math.isfinite(model.get_reconstruction_error()["reconstruction_loss"])
    model.save(tmp_path / "saved")
    again = type(model).load(tmp_path / "saved", adata=adata)
    assert_close(again.module.state_dict(), model.module.state_dict())


@pytest.mark.slow
def test_a_linear_decoder(adata):
    model = model_of(adata, None, kind=scvi.model.LinearSCVI)
    model.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    assert model.module.criterion.num_samples == 25
    assert math.isfinite(model.get_marginal_ll(n_mc_samples=20))
    assert model.get_loadings().shape == (12, 3)


@pytest.mark.slow
def test_an_accelerated_model_trains_as_the_stock_one(adata):
    from fastvi.integrations.scvi import accelerate

    losses = []
    for swapped in (False, True):
        scvi.settings.seed = 0
        model = scvi.model.SCVI(adata, n_latent=3, n_hidden=16)
        with accelerate() if swapped else accelerate("Normal"):
            model.train(max_epochs=3, accelerator="cpu", enable_progress_bar=False)
        losses.append(model.history["elbo_train"].to_numpy(dtype=float))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(
    "kind",
    [scvi.model.SCANVI, scvi.model.TOTALVI, scvi.model.PEAKVI, scvi.model.AUTOZI, int, None],
    ids=["SCANVI", "TOTALVI", "PEAKVI", "AUTOZI", "int", "None"],
)
def test_models_of_another_loss_are_refused(kind):
    with pytest.raises(TypeError, match="expected model to be a class of scvi-tools whose module"):
        bounded(kind)


def test_other_bad_input():
    with pytest.raises(TypeError, match="expected objective to be a loss of fastvi"):
        bounded(scvi.model.SCVI, "dreg")
    with pytest.raises(TypeError, match="expected a module with the loss of scvi.module.VAE"):

        class Own(BoundMixin, scvi.module.SCANVAE):
            pass
