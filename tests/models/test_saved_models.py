"""Models in files: what comes back, and what is refused in one line."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import fastvi
from fastvi import objectives

pytest.importorskip("safetensors")

FEATURES, LATENT = 5, 2
KEY = torch.tensor([3, 4])


def networks(width: int = FEATURES) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(FEATURES, 2 * LATENT), nn.Linear(LATENT, width)


def data() -> Tensor:
    return torch.poisson(torch.full((6, FEATURES), 1.5), generator=torch.Generator().manual_seed(1))


def learned_prior() -> tuple[nn.Parameter, Tensor]:
    return nn.Parameter(torch.tensor([0.3, -0.2])), torch.tensor([0.1, 0.4])


class LearnedPrior(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(LATENT))

    def forward(self) -> Independent:
        return Independent(Normal(self.loc, 1.0), 1)


CASES: dict[str, tuple[dict, dict, int]] = {
    "bernoulli": ({}, {}, 1),
    "gaussian": (
        {"likelihood": fastvi.GaussianLikelihood(torch.full((5,), 0.4), learned=True)}, {}, 1),
    "laplace": ({"likelihood": fastvi.LaplaceLikelihood(2.0)}, {}, 1),
    "gaussian heads": ({"likelihood": fastvi.GaussianLikelihood(None)}, {}, 2),
    "poisson": ({"likelihood": "poisson", "fuse_linear": False}, {}, 1),
    "negative binomial": ({"likelihood": "negative_binomial", "latent_features": 2}, {}, 1),
    "zinb heads": (
        {"likelihood": fastvi.ZeroInflatedNegativeBinomialLikelihood(None, validate_args=True)},
        {},
        3,
    ),
    "learned prior": ({"prior": learned_prior()}, {}, 1),
    "module": ({"prior": LearnedPrior()}, {"prior": LearnedPrior()}, 1),
    "function": (
        {"likelihood": lambda out: Normal(out, 1.0)},
        {"likelihood": lambda out: Normal(out, 1.0)},
        1,
    ),
}  # fmt: skip


def shaken(model: nn.Module) -> nn.Module:
    """With other numbers than a new model has."""
    torch.manual_seed(9)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return model


@pytest.mark.parametrize("name", CASES)
def test_a_vae_comes_back_as_it_was(name: str, tmp_path: Path):
    options, beside, heads = CASES[name]
    vae = shaken(fastvi.VAE(*networks(heads * FEATURES), **options))
    path = tmp_path / "vae.safetensors"
    vae.save(path)
    again = fastvi.VAE.load(path, *networks(heads * FEATURES), **beside)
    assert vae.state_dict().keys() == again.state_dict().keys()
    for key, value in vae.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    learned = {key for key, _ in vae.named_parameters()}
    assert learned == {key for key, _ in again.named_parameters()}
    assert again.fuse_linear == vae.fuse_linear and again.latent_features == vae.latent_features
    x = data()
    assert torch.equal(vae.log_weights(x, 3, key=KEY), again.log_weights(x, 3, key=KEY))
    settings = getattr(vae.likelihood, "validate_args", None)
    assert getattr(again.likelihood, "validate_args", None) == settings
    assert repr(again).splitlines()[1:3] == repr(vae).splitlines()[1:3]
    assert [file.name for file in tmp_path.iterdir()] == ["vae.safetensors"]


def layers(width: int = 3, family: str = "gaussian") -> list[fastvi.StochasticLayer]:
    outputs = 2 if family == "gaussian" else 1
    first = fastvi.StochasticLayer(
        family,
        width,
        guide=nn.Linear(FEATURES, outputs * width),
        model=nn.Linear(LATENT, outputs * width),
    )
    second = fastvi.StochasticLayer(
        "bernoulli", LATENT, guide=nn.Linear(width, LATENT), prior=nn.Parameter(torch.zeros(LATENT))
    )
    return [first, second]


def deep(**options) -> fastvi.HierarchicalVAE:
    network = fastvi.HierarchicalVAE(layers(), nn.Linear(3, FEATURES), **options)
    shaken(network)
    return network


def test_a_hierarchical_vae_comes_back_as_it_was(tmp_path: Path):
    network, path = deep(likelihood="negative_binomial"), tmp_path / "deep.safetensors"
    network.save(path)
    again = fastvi.HierarchicalVAE.load(path, layers(), nn.Linear(3, FEATURES))
    x = data()
    assert torch.equal(network.log_weights(x, 3, key=KEY), again.log_weights(x, 3, key=KEY))
    assert isinstance(again.likelihood, fastvi.NegativeBinomialLikelihood)
    again.loss(x, objectives.VIMCO(4)).backward()


def test_a_model_in_double_precision_comes_back_into_such_networks(tmp_path: Path):
    vae, path = shaken(fastvi.VAE(*networks())).double(), tmp_path / "vae.safetensors"
    vae.save(path)
    again = fastvi.VAE.load(path, *(part.double() for part in networks()))
    x = data().double().clamp(max=1.0)
    assert torch.equal(vae.log_weights(x, 3, key=KEY), again.log_weights(x, 3, key=KEY))
    with pytest.raises(ValueError, match="of torch.float64 .* the model has torch.float32"):
        fastvi.VAE.load(path, *networks())


def test_networks_that_share_weights_are_saved(tmp_path: Path):
    encoder, decoder = nn.Linear(FEATURES, 2 * LATENT), nn.Linear(2 * LATENT, FEATURES)
    decoder.weight = nn.Parameter(encoder.weight.T)
    latent = 2 * LATENT
    vae = fastvi.VAE(lambda x: (encoder(x), torch.zeros(len(x), latent)), decoder)
    vae.shared = encoder
    vae.save(tmp_path / "vae.safetensors")


# ---- what is refused --------------------------------------------------------------------------
def saved(tmp_path: Path, model: nn.Module | None = None) -> Path:
    path = tmp_path / "vae.safetensors"
    (shaken(fastvi.VAE(*networks())) if model is None else model).save(path)
    return path


def parts(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def written(path: Path, header: object, values: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + values)


def with_header(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        header, values = parts(path)
        change(header)
        written(path, header, values)

    return damage


def with_settings(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(header: dict) -> None:
        content = json.loads(header["__metadata__"]["fastvi"])
        change(content)
        header["__metadata__"]["fastvi"] = json.dumps(content)

    return with_header(damage)


WEIGHT = "encoder.weight"
DAMAGES = {
    "empty": (lambda p: p.write_bytes(b""), "of another kind, or one that is cut off"),
    "text": (lambda p: p.write_text("a letter of some length"), "of another kind"),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:60]), "cut off"),
    "cut in the values": (lambda p: p.write_bytes(p.read_bytes()[:-3]), "cut off or goes on"),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"more"), "cut off or goes on"),
    "a huge header": (lambda p: p.write_bytes(b"\xff" * 8 + p.read_bytes()), "its header"),
    "no JSON": (
        lambda p: p.write_bytes(struct.pack("<Q", 4) + b"{{{{" + bytes(9)), "another header"),
    "a list": (lambda p: written(p, [1, 2], b""), "no JSON object"),
    "larger shape": (
        with_header(lambda h: h[WEIGHT].update(shape=[400, 500])), "needs 800000 bytes, got 80"),
    "negative shape": (with_header(lambda h: h[WEIGHT].update(shape=[-4, -5])), "has the shape"),
    "overlap": (
        with_header(lambda h: h[WEIGHT].update(data_offsets=h["decoder.weight"]["data_offsets"],
                                               shape=h["decoder.weight"]["shape"])),
        "a tensor begins at"),
    "another type": (with_header(lambda h: h[WEIGHT].update(dtype="F8_E5M2")), "another header"),
    "no places": (with_header(lambda h: h[WEIGHT].pop("data_offsets")), "data_offsets"),
    "no settings": (with_header(lambda h: h.pop("__metadata__")), "without a model's settings"),
    "settings that are none": (
        with_header(lambda h: h["__metadata__"].update(fastvi="{")), "another header"),
    "format": (with_settings(lambda s: s.update(format=99)), "format 99, not 1"),
    "class": (with_settings(lambda s: s.update({"class": "Other"})), "of the class Other"),
    "no parts": (with_settings(lambda s: s.update(settings=3)), "one without settings"),
    "a likelihood": (
        with_settings(lambda s: s["likelihood"].update({"class": "os.system"})),
        "class os.system, which is not one of fastvi's"),
    "options": (
        with_settings(lambda s: s["likelihood"].update(settings={"code": 1})), "code"),
    "a large scale": (
        with_settings(lambda s: s.update(likelihood={"class": "GaussianLikelihood", "settings": {
            "scale": [2**40, 2**40]}})), "expected .* to be a model that VAE.save has written"),
    "a prior": (with_settings(lambda s: s["settings"].update(prior={"loc": 3})), "setting prior"),
    "a flag": (
        with_settings(lambda s: s["settings"].update(fuse_linear="yes")), "fuse_linear of yes"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_one_line(name: str, tmp_path: Path):
    path = saved(tmp_path)
    damage, words = DAMAGES[name]
    damage(path)
    with pytest.raises(ValueError, match=words) as caught:
        fastvi.VAE.load(path, *networks())
    message = str(caught.value)
    assert message.startswith("VAE.load: expected ") and str(path) in message
    assert "\n" not in message and len(message) < 800


@pytest.mark.parametrize(
    ("load", "words"),
    [
        pytest.param(
            lambda p: fastvi.VAE.load(p, nn.Linear(FEATURES, 6), nn.Linear(3, FEATURES)),
            r"encoder.weight of .* shape \[4, 5\], where the model has .* shape \[6, 5\]",
            id="other shapes"),
        pytest.param(
            lambda p: fastvi.VAE.load(p, networks()[0], lambda z: z), "also decoder.bias",
            id="fewer tensors"),
        pytest.param(
            lambda p: fastvi.VAE.load(p, nn.Sequential(nn.Linear(5, 4)), networks()[1]),
            "with no encoder.0.bias", id="other names"),
        pytest.param(
            lambda p: fastvi.HierarchicalVAE.load(p, layers(), nn.Linear(3, 5)),
            "of the class VAE", id="another class"),
        pytest.param(
            lambda p: fastvi.VAE.load(p, *networks(), prior=LearnedPrior()),
            "no prior beside that of", id="a prior too many"),
    ],
)  # fmt: skip
def test_another_model_is_refused(load, words, tmp_path: Path):
    with pytest.raises(ValueError, match=words):
        load(saved(tmp_path))


def test_other_layers_are_refused(tmp_path: Path):
    path = saved(tmp_path, deep())
    with pytest.raises(ValueError, match=r"got one of the layers .*gaussian"):
        fastvi.HierarchicalVAE.load(path, layers(family="bernoulli"), nn.Linear(3, FEATURES))


def test_what_has_to_be_given_is_asked_for(tmp_path: Path):
    path = saved(tmp_path, fastvi.VAE(*networks(), prior=LearnedPrior()))
    with pytest.raises(ValueError, match=r"expected prior=\.\.\. for"):
        fastvi.VAE.load(path, *networks())
    path = saved(tmp_path, fastvi.VAE(*networks(), likelihood=lambda out: Normal(out, 1.0)))
    with pytest.raises(
        ValueError, match=r"expected likelihood=\.\.\. for .*DistributionLikelihood"
    ):
        fastvi.VAE.load(path, *networks())


def test_no_file_and_no_folder(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        fastvi.VAE.load(tmp_path / "none", *networks())
    with pytest.raises(ValueError, match="a folder, a pipe or a device"):
        fastvi.VAE.load(tmp_path, *networks())
    with pytest.raises(OSError, match="could not write"):
        fastvi.VAE(*networks()).save(tmp_path / "no" / "vae.safetensors")


def test_a_lazy_layer_has_to_know_its_size(tmp_path: Path):
    vae = fastvi.VAE(nn.LazyLinear(4), nn.Linear(2, FEATURES))
    with pytest.raises(ValueError, match="VAE.save: expected all layers .*LazyLinear.* input"):
        vae.save(tmp_path / "vae.safetensors")
    vae.encode(data())
    vae.save(tmp_path / "vae.safetensors")
    again = fastvi.VAE.load(tmp_path / "vae.safetensors", nn.LazyLinear(4), nn.Linear(2, FEATURES))
    x = data().clamp(max=1.0)
    assert torch.equal(vae.log_weights(x, 3, key=KEY), again.log_weights(x, 3, key=KEY))


def test_a_write_that_fails_leaves_the_file_of_before(tmp_path: Path, monkeypatch):
    path = saved(tmp_path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="could not write .*No space left"):
        fastvi.VAE(*networks()).save(path)
    assert path.read_bytes() == before
