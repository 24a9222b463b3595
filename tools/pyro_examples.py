"""Run Pyro's own examples with and without ``accelerate()``: the same losses, and how fast.

    git clone https://github.com/pyro-ppl/pyro
    python tools/pyro_examples.py pyro/examples             # all that need no download
    python tools/pyro_examples.py pyro/examples lkj svi     # those whose line has one of the words

Each example runs in processes of its own, with one thread, by turns. What is compared is what
``SVI.step`` returned, or the mean of all that ``MCMC`` drew; the ratio is of processor time. Where
only the data would be downloaded, a stand-in of the same shape takes its place.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import statistics
import sys
import tempfile
import time
import traceback
import types
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import pyro.infer
import torch

from fastvi.integrations.pyro import accelerate

matplotlib.use("Agg")
import matplotlib.pyplot  # noqa: E402, F401  (once, and not in the time of each example)

torch.set_num_threads(1)

OFFLINE = (
    "capture_recapture/cjs.py --num-steps=60 -m 1",
    "capture_recapture/cjs.py --num-steps=60 -m 2",
    "capture_recapture/cjs.py --num-steps=60 -m 3",
    "capture_recapture/cjs.py --num-steps=60 -m 4",
    "capture_recapture/cjs.py --num-steps=60 -m 5",
    "capture_recapture/cjs.py --num-steps=30 -m 3 --tmc --tmc-num-samples=2",
    "contrib/autoname/mixture.py --num-epochs=200",
    "contrib/autoname/scoping_mixture.py --num-epochs=200",
    "contrib/autoname/tree_data.py --num-epochs=100",
    "contrib/cevae/synthetic.py --num-epochs=3",
    "contrib/epidemiology/sir.py --nojit -np=128 -t=2 -w=5 -n=10 -d=20 -p=1000 -f 2",
    "contrib/epidemiology/sir.py --nojit -np=128 -t=2 -w=5 -n=10 -d=20 -p=1000 -f 2 --haar",
    "contrib/epidemiology/sir.py --nojit -np=128 -ss=100 -n=4 -d=20 -p=1000 -f 2 --svi",
    "contrib/epidemiology/regional.py --nojit -t=2 -w=5 -n=5 -r=3 -d=20 -p=1000 -f 2",
    "contrib/mue/FactorMuE.py --test --small --include-stop --no-plots --no-save -e 200",
    "contrib/mue/ProfileHMM.py --test --small --no-plots --no-save",
    "contrib/oed/ab_test.py --num-vi-steps=200 --num-bo-steps=2",
    "dmm.py --num-epochs=3",
    "dmm.py --num-epochs=3 --num-iafs=1",
    "dmm.py --num-epochs=2 --tmcelbo --tmc-num-samples=2",
    "eight_schools/mcmc.py --num-samples=60 --warmup-steps=40",
    "eight_schools/svi.py --num-epochs=500",
    "einsum.py",
    "hmm.py --num-steps=10 --truncate=10 --model=0",
    "hmm.py --num-steps=10 --truncate=10 --model=1",
    "hmm.py --num-steps=10 --truncate=10 --model=2",
    "hmm.py --num-steps=10 --truncate=10 --model=3",
    "hmm.py --num-steps=10 --truncate=10 --model=4",
    "hmm.py --num-steps=10 --truncate=10 --model=5",
    "hmm.py --num-steps=10 --truncate=10 --model=6",
    "hmm.py --num-steps=10 --truncate=10 --model=7",
    "inclined_plane.py --num-samples=20",
    "lda.py --num-steps=30 --num-words=100 --num-docs=100 --num-words-per-doc=8",
    "lkj.py --n=50 --num-chains=1 --warmup-steps=20 --num-samples=30",
    "minipyro.py --backend=pyro",
    "minipyro.py",
    "neutra.py -n 200 --num-warmup 10 --num-samples 10",
    "rsa/generics.py --num-samples=10",
    "rsa/hyperbole.py --price=10000",
    "rsa/schelling.py --num-samples=10",
    "rsa/schelling_false.py --num-samples=10",
    "rsa/semantic_parsing.py --num-samples=10",
    "sir_hmc.py -t=2 -w=2 -n=4 -d=2 -m=1 --enum",
    "sir_hmc.py -t=2 -w=2 -n=4 -d=2 -p=10000 --sequential",
    "sir_hmc.py -t=2 -w=2 -n=4 -d=100 -p=10000 -f 2",
    "smcfilter.py --num-timesteps=20 --num-particles=10",
    "sparse_regression.py --num-steps=100 --num-data=100 --num-dimensions 11",
    "svi_horovod.py --num-epochs=3 --size=400 --no-horovod",
    "svi_lightning.py --max_epochs=3 --size=400 --accelerator cpu --devices 1",
    "svi_torch.py --num-epochs=3 --size=400",
    "toy_mixture_model_discrete_enumeration.py --num-steps=200",
    "vae/vae.py --num-epochs=3",
)
ROUNDS = int(os.environ.get("ROUNDS", "2"))
LIMIT = 600  # seconds of processor time, after which an example is ended


# ---- one run ------------------------------------------------------------------------------------
def stand_in_for_data() -> None:
    """Put random chorales and random images where an example would download some."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "visdom"):
        sys.modules[name] = types.ModuleType(name)
    torchvision: Any = sys.modules["torchvision"]
    torchvision.datasets = sys.modules["torchvision.datasets"]
    torchvision.transforms = sys.modules["torchvision.transforms"]
    torchvision.datasets.MNIST = object

    import pyro.contrib.examples.polyphonic_data_loader as poly

    source = torch.Generator().manual_seed(0)

    def chorales(count: int) -> dict[str, torch.Tensor]:
        lengths = torch.randint(20, 60, (count,), generator=source)
        notes = (torch.rand(count, 60, 88, generator=source) < 0.05).float()
        notes *= (torch.arange(60) < lengths[:, None])[..., None]
        return {"sequence_lengths": lengths, "sequences": notes}

    sizes = {"train": 60, "valid": 20, "test": 20}
    poly.load_data = lambda dataset: {part: chorales(n) for part, n in sizes.items()}

    def loaders(*args: Any, **kwargs: Any) -> list[Any]:
        images = (torch.rand(1024, 1, 28, 28, generator=source) < 0.3).float()
        data = torch.utils.data.TensorDataset(images, torch.zeros(1024))
        return [torch.utils.data.DataLoader(data, batch_size=256) for _ in range(2)]

    cached: Any = types.ModuleType("utils.mnist_cached")
    cached.MNISTCached, cached.setup_data_loaders = object, loaders
    sys.modules["utils.mnist_cached"] = cached


def run(path: Path, arguments: list[str], fast: bool) -> dict[str, Any]:
    """Run one example in this process, and return its losses and its time."""
    pyro.__version__ = "1.9.1"  # the examples ask for the release that they came with
    found: list[float] = []
    plain_step, plain_mcmc = pyro.infer.SVI.step, pyro.infer.MCMC.run

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = plain_step(self, *args, **kwargs)
        if isinstance(loss, float):
            found.append(loss)
        return loss

    def sample(self: Any, *args: Any, **kwargs: Any) -> None:
        plain_mcmc(self, *args, **kwargs)
        found.extend(float(x.double().mean()) for x in self.get_samples().values())

    pyro.infer.SVI.step, pyro.infer.MCMC.run = step, sample
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    pyro.set_rng_seed(0)
    handle = accelerate() if fast else None
    started = time.process_time()
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        seconds = time.process_time() - started
        if handle is not None:
            handle.close()
    return {"seconds": seconds, "found": found}


# ---- all runs -----------------------------------------------------------------------------------
def in_process(examples: Path, line: str, fast: bool) -> dict[str, Any] | str:
    """Return what the example gave in a process of its own, or the last line of its error."""
    name, *arguments = line.split()
    with tempfile.TemporaryDirectory() as folder:
        answer, said = Path(folder, "answer.json"), Path(folder, "said")
        child = os.fork()  # so that the packages are imported once
        if not child:
            code = 1
            with said.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                os.chdir(folder)
                signal.setitimer(signal.ITIMER_PROF, LIMIT)
                try:
                    answer.write_text(json.dumps(run(examples / name, arguments, fast)))
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(code)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            return f"ended by signal {os.WTERMSIG(status)}"
        if status:
            return (said.read_text().strip().splitlines() or ["no word"])[-1]
        return json.loads(answer.read_text())


def compare(examples: Path, line: str) -> bool:
    """Print one row, and return whether the example is as it was and no slower."""
    stock, fast = [], []
    for _ in range(ROUNDS):
        for runs, on in ((stock, False), (fast, True)):
            result = in_process(examples, line, on)
            if isinstance(result, str):
                print(f"{line}: {'accelerated' if on else 'needs more'}: {result}", flush=True)
                return not on
            runs.append(result)
    before, after = stock[0]["found"], fast[0]["found"]
    repeats = all(x["found"] == before for x in stock)
    gaps = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(after, before, strict=True)]
    ratio = statistics.median(x["seconds"] for x in stock) / statistics.median(
        x["seconds"] for x in fast
    )
    values = f"{gaps[0]:.0e} first, {gaps[-1]:.0e} last of {len(gaps)}" if gaps else "nothing"
    note = "" if repeats else ", not repeatable without it either"
    print(f"{line}: {ratio:.2f} x, {values}{note}", flush=True)
    return ratio >= 0.95


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__)
        return 2
    warnings.simplefilter("ignore")
    stand_in_for_data()
    examples, words = Path(arguments[0]).resolve(), arguments[1:]
    chosen = [x for x in OFFLINE if not words or any(word in x for word in words)]
    return 0 if all([compare(examples, line) for line in chosen]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
