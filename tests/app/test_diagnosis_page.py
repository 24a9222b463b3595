"""The page of a diagnosis: it stands by itself, and its pictures and numbers are the run's."""

from __future__ import annotations

import base64
import functools
import html.parser
import io
import json
import math
import re

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from made_runs import make
from matplotlib import image
from quick import quick_in

from fastvi.app import diagnosis_plots, latent_plots, model_report, run_report
from fastvi.app.diagnosis_report import png_of, write_report
from fastvi.app.images import Images, load_images
from fastvi.app.networks import build_vae
from fastvi.app.page import Picture, Section, Table, render, render_markdown
from fastvi.app.run_folder import RunFolder
from fastvi.app.settings import Settings
from fastvi.app.training import held_out_pixels, train
from fastvi.diagnostics import diagnosis, weights_and_gradients
from fastvi.diagnostics.diagnosis import diagnose
from fastvi.diagnostics.latents import LatentFeatures, measure_latents

pytestmark = pytest.mark.native


class Reader(html.parser.HTMLParser):
    """Collects what a browser would load, run and show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images, self.loads, self.tags, self.open, self.words = [], [], set(), [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        attributes = dict(attrs)
        if tag == "img":
            assert attributes["alt"]
            self.images.append(attributes["src"])
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "data")]
        assert not [k for k in attributes if k.startswith("on")]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(text: str) -> Reader:
    page = Reader(text)
    assert not page.open, "not closed"
    # Nothing from elsewhere: only what is in the page, and links into it.
    assert all(load.startswith(("data:image/png;base64,", "#")) for load in page.loads)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert "default-src 'none'" in text and "url(" not in text and "@import" not in text
    return page


def pixels_of(source: str):
    return image.imread(io.BytesIO(base64.b64decode(source.partition(",")[2])))


@pytest.mark.slow
def test_a_run_s_page(command, tmp_path):
    folder = RunFolder(tmp_path, "mine & yours")
    folder.create()
    settings = Settings(epochs=2, num_samples=3, hidden=8, latent_features=3, held_out=40)
    vae = train(load_images("digits"), settings, folder)
    status, out, error = command("diagnose", folder.path, "--num-samples", 40, "--batch", 30)
    assert status == 0, error
    text = (folder.path / "diagnosis/diagnosis.html").read_text(encoding="utf-8")
    page = read(text)
    words = " ".join(" ".join(page.words).split())
    assert "Run: mine & yours;" in words and "30 held-out images of digits" in words
    # Bound against K, k-hat, tail, ESS, SNR; KL, map, aggregated, traversals; the run's three.
    assert len(page.images) == 12 == words.count("Look for:") == words.count("Do:")
    for source in page.images:
        picture = pixels_of(source)
        assert min(picture.shape[:2]) > 200 and picture[..., :3].std() > 0.04
    found = measure_latents(vae, held_out_pixels(load_images("digits"), settings)[:30])
    for feature in range(3):
        assert f"{found.kl[:, feature].mean():.3f}" in words
    for sentence in model_report.latent_advice(found):
        assert sentence in words and sentence in " ".join(out.split())
    # What the pictures beside the page show is what is in it.
    beside = {
        base64.b64encode(p.read_bytes()).decode() for p in folder.path.glob("diagnosis/*.png")
    }
    assert len(beside) == 5 and beside < {s.partition(",")[2] for s in page.images}


def test_words_of_others_are_words():
    ugly = "<script>alert(1)</script> & \"quotes\" 'too' </p>"
    section = Section(
        ugly, [ugly, [ugly], Table((ugly,), [(ugly,)]), Picture(ugly, b"png", ugly, ugly)]
    )
    page = read(render(ugly, {ugly: ugly}, [section]))
    assert sum(ugly in words for words in page.words) == 11
    assert ugly in render_markdown(ugly, {ugly: ugly}, [section])


def test_pictures_without_a_file_are_not_in_the_text():
    section = Section(
        "A", [Picture("one", b"", "l.", "d."), Picture("two", b"", "l.", "d.", "2.png")]
    )
    only = Section("B", [Picture("one", b"", "l.", "d.")])
    text = render_markdown("T", {"a": 1}, [section, only])
    assert re.findall(r"!\[(.*)\]\((.*)\)", text) == [("two", "2.png")] and "## B" not in text


# ---- pictures of latent features, whatever comes ------------------------------------------------
def features(count: int, data: int = 12, scale: float = 0.5) -> LatentFeatures:
    from fastvi import VAE

    torch.manual_seed(0)
    vae = VAE(lambda x: (x, torch.full_like(x, 2 * math.log(scale))), torch.nn.Linear(count, 4))
    return measure_latents(vae, torch.randn(data, count))


def colours_in(draw, *colours: str) -> list[int]:
    """How many points of a picture have each colour."""
    picture = (image.imread(io.BytesIO(png_of(draw)))[..., :3] * 255).round()
    wanted = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours]
    return [int((picture == colour).all(-1).sum()) for colour in wanted]


@pytest.mark.parametrize("labels", [None, "few", "many"], ids=str)
@pytest.mark.parametrize("count", [1, 2, 5], ids="D{}".format)
def test_the_map_of_any_number_of_features(count, labels):
    given = {"few": torch.arange(12) % 3, "many": torch.arange(12)}.get(labels)
    png_of(lambda file: latent_plots.draw_latent_map(file, features(count), given))


def test_the_map_of_one_datum():
    png_of(lambda file: latent_plots.draw_latent_map(file, features(5, 1), None))


def test_two_features_are_shown_as_they_are():
    found = features(2)
    points, names, _ = latent_plots._on_a_plane(found)
    assert torch.equal(points, found.loc) and names == ("feature 0", "feature 1")


def test_the_projection_is_that_of_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition")
    found = features(5, 40)
    points, names, _ = latent_plots._on_a_plane(found)
    pca = decomposition.PCA(2).fit(found.loc.numpy())
    expected = torch.tensor(found.loc.numpy() @ pca.components_.T)
    # Up to the sign of a direction.
    torch.testing.assert_close(points.abs(), expected.abs(), rtol=1e-6, atol=1e-9)
    for share, name in zip(pca.explained_variance_ratio_, names, strict=True):
        assert f"{share:.0%}" in name


def test_active_features_are_blue_and_the_others_grey():
    found = features(4)
    loc = found.loc.clone()
    loc[:, :2] = 0.0
    changed = LatentFeatures(
        loc, found.scale, found.kl, loc.var(0), found.prior_loc, found.prior_scale,
        found.marginal_kl,
    )  # fmt: skip
    blue, grey = colours_in(lambda f: latent_plots.draw_kl(f, changed), "#1d6fb8", "#9aa5b1")
    assert changed.active.tolist() == [False, False, True, True]
    assert blue > 1000 and grey > 1000
    blue, grey = colours_in(lambda f: latent_plots.draw_kl(f, found), "#1d6fb8", "#9aa5b1")
    assert blue > 1000 and grey < 1000


@pytest.mark.parametrize("count", [1, 2, 7, 100], ids="D{}".format)
def test_curves_and_bars_of_any_number_of_features(count):
    found = features(count)
    png_of(lambda file: latent_plots.draw_aggregated(file, found))
    png_of(lambda file: latent_plots.draw_kl(file, found))


def test_traversals_change_one_feature(monkeypatch):
    """The decoder gets the datum's mean, but for the feature that goes from -3 to 3."""
    settings = Settings(hidden=4, latent_features=3)
    vae = build_vae(20, settings)
    found = measure_latents(vae, torch.rand(6, 20).round())
    seen, decode = [], vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: seen.append(z) or decode(z))
    png_of(lambda file: latent_plots.draw_traversals(file, vae, found, (5, 4), row=2))
    assert len(seen) == 3
    for feature, z in zip(found.order, seen, strict=True):
        torch.testing.assert_close(z[:, feature], torch.linspace(-3, 3, 7))
        others = [d for d in range(3) if d != feature]
        expected = found.loc[2, others].float().expand(7, 2)
        torch.testing.assert_close(z[:, others], expected)


# ---- pictures of the weights, whatever comes ----------------------------------------------------
LOG_WEIGHTS = {
    "ordinary": lambda: torch.randn(400, 5),
    "collapsed": lambda: torch.zeros(100, 5).index_fill(0, torch.tensor([3]), 500.0),
    "equal": lambda: torch.zeros(100, 5),
    "impossible": lambda: torch.full((100, 5), -math.inf),
    "undefined": lambda: torch.full((100, 5), math.nan),
    "mostly impossible": lambda: torch.randn(100, 5).masked_fill(torch.rand(100, 5) < 0.9, -1e999),
    "heavy": lambda: 30 * torch.randn(100, 5),
    "one datum": lambda: torch.randn(100, 1),
    "no tail": lambda: torch.randn(20, 3),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("make_log_w", quick_in(LOG_WEIGHTS, "ordinary", "mostly impossible"))
def test_pictures_bear_all_weights(make_log_w):
    log_w = make_log_w()
    ladder = weights_and_gradients.ladder_of(len(log_w))
    ess, k, gap, largest, bounds, tail, few = weights_and_gradients.measure(log_w, ladder)
    measured = (ess, k, gap, largest, ladder, bounds, (), {}, tail, few)
    found = diagnosis.Diagnosis(len(log_w), *measured)
    for draw in (
        diagnosis_plots.draw_tail,
        diagnosis_plots.draw_bound_against_k,
        diagnosis_plots.draw_pareto_k,
        diagnosis_plots.draw_effective_sample_size,
    ):
        assert len(png_of(functools.partial(draw, found=found))) > 5000
    # The smallest, the middle and the largest of those that are known.
    known = int(k.isfinite().sum())
    places = {0, known // 2, known - 1} if known else set()
    chosen = [row for row, _, _ in diagnosis_plots._of_three(found)]
    ranks = [int((k[k.isfinite()] < k[row]).sum()) for row in chosen]
    assert sorted(ranks) == sorted(places)


# ---- advice -------------------------------------------------------------------------------------
def advice(activity, marginal) -> str:
    d = len(activity)
    found = LatentFeatures(
        torch.zeros(3, d), torch.ones(3, d), torch.ones(3, d), torch.tensor(activity),
        torch.zeros(d), torch.ones(d), torch.tensor(marginal),
    )  # fmt: skip
    return " ".join(model_report.latent_advice(found))


@pytest.mark.parametrize(
    ("activity", "marginal", "says"),
    [
        ([0.0, 0.009], [0.0, 0.0], "^None of the 2 .*collapsed"),
        ([0.5, 0.001], [0.0, 0.0], "^1 of 2 .*about 1 would give"),
        ([0.5, 0.5], [0.0, 0.0], r"^2 of 2 latent features are active: try more of them\.$"),
        ([0.5, 0.5, 0.0], [0.2, 0.7, 9.0], "of 2 of the features is more than 0.1.*feature 1:"),
    ],
    ids=["collapsed", "some", "all", "far from the prior"],
)
def test_advice_on_latent_features(activity, marginal, says):
    assert re.search(says, advice(activity, marginal))


# ---- a run that is not over ---------------------------------------------------------------------
@pytest.mark.slow
def test_a_page_without_epochs_has_no_picture_of_them(tmp_path):
    settings = Settings(hidden=4, latent_features=2)
    vae, pixels = build_vae(20, settings), torch.rand(9, 20)
    images = Images("mine", pixels, pixels, (5, 4))
    found = measure_latents(vae, pixels.round())
    parts = list(model_report.sections(vae, found, images, pixels.round(), settings, []))
    assert len(parts[-1].blocks) == 2
    given = diagnose(vae, pixels.round(), num_samples=30, snr_draws=2, snr_samples=(1, 10))
    write_report(tmp_path / "d", given, {"Run": "x"}, overwrite=False, more=parts)
    assert len(read((tmp_path / "d/diagnosis.html").read_text()).images) == 5 + 4 + 2


def test_the_run_s_pictures_have_the_names_of_its_files(tmp_path):
    path = make(tmp_path, "a")
    described = json.loads((path / "settings.json").read_text())
    settings = Settings(**described["settings"])
    images, vae = load_images("digits"), build_vae(64, settings)
    drawn = run_report.pictures(vae, images, images.held_out.round(), settings, [])
    assert list(drawn) == ["bound.png", "reconstructions.png", "samples.png"]
