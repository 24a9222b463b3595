"""The benchmark measures what it says: the same work by all, in turn, in rows that tell all."""

from __future__ import annotations

import math
import os
import signal

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Laplace, Normal

import fastvi
from benchmarks import cli
from benchmarks.bandwidth import share_rows
from benchmarks.cases import HEADLINE, SMALL, cases
from benchmarks.conditions import conditions
from benchmarks.ops import WORKS, jax_step
from benchmarks.ops.bernoulli_log_prob import by_hand
from benchmarks.ops.few_step import (
    FASTVI_ALL,
    FEW_STEP,
    FEW_STEP_CHUNKS,
    FORWARD_ALONE,
    loss_of,
)
from benchmarks.ops.iwae_step import (
    IWAE_STEP,
    LATENT,
    NETWORKS,
    Networks,
    compiled_losses,
    eager_loss,
    fastvi_loss,
    hand_loss,
)
from benchmarks.ops.jax_step import JAX, NUMPYRO
from benchmarks.rounds import Samples, Staff, WorkerError, alternate, measure
from benchmarks.rows import RowFile, deciles, read, to_rows
from benchmarks.table import missed, ratio_table
from benchmarks.work import CHECKPOINT, FORWARD, FORWARD_BACKWARD, MODES, Case, OpWork

OPS = [pytest.param(work, id=name) for name, work in WORKS.items() if isinstance(work, OpWork)]
SMALL_IWLB = Case("iwlb", SMALL["iwlb"], FORWARD)
STYLE = "op provider mode metric unit p20 p50 p80 shape dtype device torch cuda fastvi commit date"


def uncompiled(function):
    return function


def ways(work: OpWork, case: Case):
    """Every provider's function of the inputs, the variants for the compiler uncompiled."""
    num_samples = case.sizes.get("K", 1)
    found = {name: work.functions(name, case)[""] for name in ("fastvi", "eager", CHECKPOINT)}
    variants = {name: make(uncompiled, num_samples) for name, make in work.compiled.items()}
    return found | variants


# ---- the work -----------------------------------------------------------------------------------
DRAWS = ("gaussian_rsample", "laplace_rsample", "bernoulli_sample", "categorical_sample")


@pytest.mark.parametrize("work", [param for param in OPS if param.id not in DRAWS])
def test_every_provider_computes_the_same(work: OpWork):
    case = Case(work.name, SMALL[work.name], FORWARD_BACKWARD, dtype="float64")
    inputs = work.inputs(case)
    trained = [inputs[index] for index in work.trained]
    results = {}
    for name, function in ways(work, case).items():
        out = function(*inputs)
        upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        results[name] = (out, *torch.autograd.grad(out, trained, upstream))
    for name, found in results.items():
        torch.testing.assert_close(found, results["eager"], msg=lambda text, n=name: f"{n}: {text}")


def test_every_provider_samples_the_same_gaussian():
    work = WORKS["gaussian_rsample"]
    case = Case(work.name, SMALL[work.name], FORWARD_BACKWARD, dtype="float64")
    loc, log_var = work.inputs(case)
    for name, function in ways(work, case).items():
        z, log_q, log_p = function(loc, log_var)
        grad_z, grad_q, grad_p = (torch.randn_like(out) for out in (z, log_q, log_p))
        found = torch.autograd.grad((z, log_q, log_p), (loc, log_var), (grad_z, grad_q, grad_p))
        with torch.no_grad():
            q = Normal(loc, (0.5 * log_var).exp())
            eps = (z - loc) / q.scale
            u = grad_z - grad_p[..., None] * z
            expected = u.sum(0), 0.5 * (u * q.scale * eps - grad_q[..., None]).sum(0)
            densities = q.log_prob(z).sum(-1), Normal(0.0, 1.0).log_prob(z).sum(-1)

        def says(text, name=name):
            return f"{name}: {text}"

        torch.testing.assert_close((log_q, log_p), densities, msg=says)
        torch.testing.assert_close(found, expected, msg=says)
        assert not torch.equal(z, function(loc, log_var)[0]), f"{name} repeats its noise"


def test_every_provider_samples_the_same_laplace():
    work = WORKS["laplace_rsample"]
    case = Case(work.name, SMALL[work.name], FORWARD_BACKWARD, dtype="float64")
    loc, scale = work.inputs(case)
    for function in ways(work, case).values():
        z, log_q = function(loc, scale)
        grad_z, grad_q = torch.randn_like(z), torch.randn_like(log_q)
        found = torch.autograd.grad((z, log_q), (loc, scale), (grad_z, grad_q))
        with torch.no_grad():
            eps = (z - loc) / scale
            expected = grad_z.sum(0), (grad_z * eps - grad_q[..., None] / scale).sum(0)
            density = Laplace(loc, scale).log_prob(z).sum(-1)
        torch.testing.assert_close((log_q, *found), (density, *expected))


@pytest.mark.parametrize("name", ["bernoulli_sample", "categorical_sample"])
def test_every_provider_samples_the_same_outcomes(name: str):
    """In the mean: log q has minus the entropy, and its gradient is zero. Five standard errors."""
    torch.manual_seed(0)
    work = WORKS[name]
    case = Case(name, SMALL[name] | {"K": 4000}, FORWARD_BACKWARD, dtype="float64")
    (logits,) = work.inputs(case)
    law = Bernoulli(logits=logits) if name == "bernoulli_sample" else Categorical(logits=logits)
    entropy = law.entropy().detach()
    entropy = entropy.sum(-1) if name == "bernoulli_sample" else entropy
    for provider, function in ways(work, case).items():
        log_q = function(logits)
        error = log_q.detach().std(0) / 4000**0.5
        assert bool(((log_q.detach().mean(0) + entropy).abs() < 5 * error).all()), provider
        (score,) = torch.autograd.grad(log_q.mean(0).sum(), logits)
        assert score.abs().max() < 5 * 0.5 / 4000**0.5, provider


def test_every_provider_takes_the_same_step():
    num_samples, batch = 7, 3
    networks = Networks().double()
    x = (torch.rand(batch, 784) > 0.5).double()

    def step(loss, *arguments):
        torch.manual_seed(5)
        networks.zero_grad()
        value = loss(x, *arguments)
        value.backward()
        return value, [parameter.grad for parameter in networks.parameters()]

    eager = step(eager_loss(networks, num_samples))
    for name, loss in compiled_losses(networks, num_samples, uncompiled).items():
        torch.testing.assert_close(step(loss), eager, msg=lambda text, n=name: f"{n}: {text}")

    torch.manual_seed(5)
    zero = torch.zeros(batch, LATENT, dtype=torch.float64)
    noise, _, _ = fastvi.ops.gaussian_rsample(
        zero, scale=torch.ones_like(zero), num_samples=num_samples
    )
    hand = step(hand_loss(networks, num_samples, by_hand), noise)
    torch.testing.assert_close(step(fastvi_loss(networks, num_samples, "iwae")), hand)
    dreg = step(fastvi_loss(networks, num_samples, "dreg"))
    torch.testing.assert_close(dreg[0], hand[0])
    assert not torch.equal(dreg[1][0], hand[1][0])


def test_networks_alone_reach_every_parameter():
    case = Case(IWAE_STEP.name, {"K": 2, "B": 3}, FORWARD_BACKWARD)
    [run] = IWAE_STEP.runs(NETWORKS, case).values()
    before = torch.get_rng_state()
    run()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("work", OPS)
def test_least_traffic_counts_every_tensor_once(work: OpWork):
    case = Case(work.name, SMALL[work.name], FORWARD_BACKWARD)
    inputs = work.inputs(case)
    outputs = work.functions("fastvi", case)[""](*inputs)
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs

    def size(tensors):
        return sum(tensor.nbytes for tensor in tensors)

    trained = [inputs[index] for index in work.trained]
    forward, backward = work.traffic(case.sizes, 4)
    assert forward == size(inputs) + size(outputs)
    # The inputs and the upstream gradients are read and the gradients written; the bound is read
    # again in its own backward pass.
    again = size(outputs) if work.name == "iwlb" else 0
    assert backward == size(inputs) + size(outputs) + again + size(trained)


# ---- the rounds ---------------------------------------------------------------------------------
class Recorded:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def ask(self, request):
        self.log.append((self.name, request))
        return float(len(self.log))


def test_rounds_alternate_between_the_providers():
    log: list[tuple[str, str]] = []
    workers = {name: Recorded(name, log) for name in ("fastvi", "eager", "compile")}
    values = alternate(workers, "sample", rounds=4, seconds=60, settle=0)
    assert log == 4 * [(name, "sample") for name in workers]
    assert values == {"fastvi": [1, 4, 7, 10], "eager": [2, 5, 8, 11], "compile": [3, 6, 9, 12]}


def test_rounds_end_in_time_but_never_before_the_fewest():
    log: list[tuple[str, str]] = []
    values = alternate({"eager": Recorded("eager", log)}, "sample", 1000, seconds=0, settle=0)
    assert len(values["eager"]) == 5


@pytest.mark.slow
@pytest.mark.native
def test_each_provider_has_a_process_of_its_own():
    staff = Staff("cpu", threads=1)
    with staff.of(["fastvi", "eager"]) as workers:
        pids = {worker.pid for worker in workers}
        assert len(pids | {os.getpid()}) == 3
        for worker in workers:
            assert worker.ask("load", SMALL_IWLB, worker.provider) == {}
            assert worker.ask("choose") == ""
            assert 0 < worker.ask("sample") < 1


@pytest.mark.slow
@pytest.mark.native
def test_a_provider_that_fails_is_told_and_left_out():
    notes: list[str] = []
    found = measure(SMALL_IWLB, ["nonsense", "eager"], Staff("cpu", 1), rounds=2, note=notes.append)
    assert {samples.provider for samples in found} == {"eager"}
    assert len(notes) == 1
    assert "nonsense" in notes[0]
    assert "expected provider to be one of" in notes[0]


@pytest.mark.slow
@pytest.mark.native
def test_a_process_that_dies_is_an_error_and_not_a_hang():
    with Staff("cpu", 1).of(["eager"]) as [worker]:
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="ended with code -9"):
            worker.ask("load", SMALL_IWLB, "eager")


# ---- rows, table, chart -------------------------------------------------------------------------
def rows_of(case: Case, **seconds: float):
    found = [Samples(name, "", "time", (value,) * 3) for name, value in seconds.items()]
    return to_rows(case, found, conditions("cpu"))


def test_deciles_of_known_numbers():
    assert deciles([float(x) for x in range(11)]) == (2.0, 5.0, 8.0)
    assert deciles([3.0]) == (3.0, 3.0, 3.0)


def test_rows_speak_for_themselves_and_survive_the_file(tmp_path):
    rows = rows_of(SMALL_IWLB, fastvi=1e-3, eager=2e-3)
    file = RowFile(tmp_path / "rows.csv")
    for row in rows:
        file.append([row])
    assert file.path.read_text().splitlines()[0].split(",")[:16] == STYLE.split()
    assert read(file.path) == rows
    for row in rows:
        assert row.unit == "ms"
        assert row.shape == "K5xB16"
        assert row.torch == torch.__version__
        assert row.fastvi == fastvi.__version__
        assert "thread" in row.device
        assert len(row.date) == 10
    assert [row.p50 for row in rows] == [1.0, 2.0]


def test_a_target_that_is_missed_is_shown():
    case = Case("iwlb", SMALL["iwlb"], FORWARD, targets={"eager": 4.0, "compile": 3.0})
    rows = rows_of(case, fastvi=1.0, eager=5.0, compile=2.0)
    assert missed([case], rows) == ["iwlb K5xB16 forward: 2.00 x compile, wanted 3.00"]
    table = ratio_table([case], rows)
    assert "5.00 (ok 4.00)" in table
    assert "2.00 (below 3.00)" in table


def test_share_of_the_bandwidth_is_bytes_over_time():
    case = Case("gaussian_kl", {"B": 1000, "D": 10}, FORWARD)
    num_bytes = 4 * (2 * 10_000 + 1000)
    found = [Samples("fastvi", "", "device_time", (1e-6, 1e-6))]
    [row] = share_rows(case, found, [1e12], conditions("cpu"))
    assert math.isclose(row.p50, num_bytes / 1e6)


def test_cases_cover_every_op_in_both_passes_with_targets_first():
    found = cases("cpu")
    for op, (sizes, _) in HEADLINE.items():
        for mode in MODES:
            for expected in (sizes, SMALL[op]):
                assert any((c.op, c.sizes, c.mode) == (op, expected, mode) for c in found)
    last = max(number for number, case in enumerate(found) if case.targets)
    assert all(case.dtype == "float32" for case in found[: last + 1])
    assert len(cases("cuda")) > len(found)
    assert {case.dtype for case in cases(dtypes=["float64"])} == {"float64"}
    assert {case.op for case in cases(only=["iwlb"])} == {"iwlb"}
    with pytest.raises(ValueError, match="expected --only"):
        cases(only=["nonsense"])


@pytest.mark.slow
@pytest.mark.native
def test_the_command_writes_rows_and_a_chart(tmp_path, capsys):
    image = pytest.importorskip("matplotlib.image")
    arguments = ["--only", "gaussian_kl", "iwlb", "--quick", "--rounds", "2", "--threads", "1"]
    code = cli.main([*arguments, "--providers", "fastvi", "eager", "--out", str(tmp_path)])
    assert code == 0
    [rows] = tmp_path.glob("*.csv")
    [chart] = tmp_path.glob("*.png")
    found = read(rows)
    times = [row for row in found if row.metric == "time"]
    assert len(times) == 2 * 2 * 2 * 2
    assert all(0 < row.p20 <= row.p50 <= row.p80 for row in times)
    assert image.imread(chart).std() > 0
    printed = capsys.readouterr().out
    assert "gaussian_kl" in printed
    assert str(chart) in printed


def test_the_command_refuses_what_cannot_be_measured(tmp_path):
    with pytest.raises(SystemExit, match="at least 2"):
        cli.main(["--rounds", "1", "--out", str(tmp_path)])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="no CUDA card"):
            cli.main(["--device", "cuda", "--out", str(tmp_path)])


# ---- few samples backward -----------------------------------------------------------------------
@pytest.mark.parametrize(
    "work", [pytest.param(work, id=work.name) for work in (FEW_STEP, FEW_STEP_CHUNKS)]
)
def test_few_backward_have_the_bound_and_the_forward_pass_of_all(work):
    sizes = {"K": 40, "B": 3, "M": 4} | ({"C": 10} if work is FEW_STEP_CHUNKS else {})
    case = Case(work.name, sizes, FORWARD_BACKWARD)
    networks = Networks()
    x = torch.zeros(3, 784)
    values, gradients = {}, {}
    for provider in ("fastvi", FASTVI_ALL):
        torch.manual_seed(5)
        networks.zero_grad()
        value = loss_of(provider, networks, case)(x)
        value.backward()
        values[provider] = value.detach()
        gradients[provider] = networks.decoder[0].weight.grad.clone()
    assert torch.equal(values["fastvi"], values[FASTVI_ALL])
    assert not torch.equal(gradients["fastvi"], gradients[FASTVI_ALL])
    [forward] = work.runs(FORWARD_ALONE, case).values()
    assert not forward().requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("provider", [JAX, NUMPYRO])
def test_jax_measures_the_same_step(provider: str):
    """The same bound, of other noise; and its gradient, against ours in the mean."""
    jax = pytest.importorskip("jax")
    pytest.importorskip(provider)
    torch.manual_seed(0)
    networks = Networks()
    x = (torch.randn(2, 784) > 0).float()
    params = {
        "encoder": jax_step.layers_of(networks.encoder),
        "decoder": jax_step.layers_of(networks.decoder),
    }
    make = jax_step.jax_loss if provider == JAX else jax_step.numpyro_loss
    of_ten = jax.jit(jax.value_and_grad(make(jax.numpy.asarray(x.numpy()), 10)))
    values, slopes = [], []
    for seed in range(60):
        value, grads = of_ten(params, jax.random.PRNGKey(seed))
        values.append(float(value))
        slopes.append(torch.tensor(float(grads["decoder"][-1][1].sum())))
    ours, slopes_of_ours = [], []
    for seed in range(60):
        networks.zero_grad()
        torch.manual_seed(seed)
        loss = fastvi_loss(networks, 10, "iwae")(x)
        loss.backward()
        ours.append(float(loss.detach()))
        slopes_of_ours.append(networks.decoder[-1].bias.grad.sum())
    for theirs, mine in (
        (torch.tensor(values), torch.tensor(ours)),
        (torch.stack(slopes), torch.stack(slopes_of_ours)),
    ):
        error = (theirs.var() / 60 + mine.var() / 60).sqrt()
        assert abs(theirs.mean() - mine.mean()) < 5 * error


def test_a_provider_that_is_not_there_is_left_out_and_named(monkeypatch):
    monkeypatch.setattr(jax_step.importlib.util, "find_spec", lambda name: None)
    assert jax_step.why_missing(JAX, "cpu") == "not installed; pip install jax"
    assert jax_step.why_missing("eager", "cpu") is None
    assert JAX not in cli.providers(Case(FEW_STEP.name, {"K": 8, "B": 2, "M": 2}, MODES[1]), [])
