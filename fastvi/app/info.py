"""``fastvi info``: the installed versions, and whether a better build exists.

It needs torch alone, so that it works in every installation.
"""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path

import torch

from fastvi import _ext
from fastvi._version import __version__

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def info_rows() -> list[tuple[str, str]]:
    """Return the names and values that ``fastvi info`` prints."""
    built, record = _ext.C.build_info(), _ext.build_record()
    devices = [
        f"cuda:{index} {torch.cuda.get_device_name(index)}, sm_{''.join(map(str, capability))}"
        for index, capability in enumerate(_capabilities())
    ]
    return [
        ("fastvi", __version__ + (f"+{record['wheel']}" if record["wheel"] else "")),
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("built for torch", record["torch"]),
        ("built for CUDA", record["cuda"] or "none"),
        ("CUDA architectures", record["cuda_architectures"] or "none"),
        ("compiler", built["compiler"]),
        ("CPU instruction set", f"{built['cpu_isa']} (FASTVI_CPU_ISA forces one)"),
        ("CPU threads", str(torch.get_num_threads())),
        *product_rows(),
        ("torch's CUDA", torch.version.cuda or "none"),
        ("devices", "; ".join(["cpu", *devices])),
        ("better build", better_build(record, torch.version.cuda, _capabilities(), has_gpu())),
    ]


def product_rows() -> list[tuple[str, str]]:
    """Return which library multiplies for Linears on the CPU, one row for each class of shapes.

    A layer of an ordinary network is measured here, if no process has done so before.
    """
    C = _ext.C
    C.layer_by_onednn(10_000, 200, 200, "tanh", True, True)
    rows = [("CPU products", f"{C.product_setting()} (FASTVI_PRODUCTS: torch, onednn or auto)")]
    if C.product_setting() != "auto":
        return rows
    for product, activation, *sizes, onednn, by_torch, by_onednn in C.product_choices():
        name = product.replace("_", " of ") + ("" if activation == "none" else f" and {activation}")
        shape = " x ".join(f"{size}+" for size in sizes)
        library, ratio = ("oneDNN", by_torch / by_onednn) if onednn else ("torch", None)
        faster = f", {ratio:.2f} x as fast as torch" if ratio else ""
        rows.append(("", f"{name}, {shape} (rows, in, out): {library}{faster}"))
    return rows


def better_build(
    record: dict[str, str], torch_cuda: str | None, capabilities: list[tuple[int, int]], gpu: bool
) -> str:
    """Return a sentence about a better build for this machine, with its command."""
    install = (
        _ext.wheel_command(torch.__version__, torch_cuda)
        if record["wheel"]
        else f"{_ext.REBUILD}, with nvcc on the PATH"
    )
    if not record["cuda"]:
        if torch_cuda and (gpu or capabilities):
            return f"one with CUDA {torch_cuda}, which this torch has: {install}"
        if gpu:
            return (
                "one with CUDA: there is an NVIDIA GPU, but this torch is for the CPU alone; "
                "install a torch with CUDA, and fastvi for it"
            )
        return "none for this machine"
    lacking = [one for one in capabilities if not runs_on(record["cuda_architectures"], one)]
    if lacking:
        names = ", ".join(f"{major}.{minor}" for major, minor in dict.fromkeys(lacking))
        return (
            f"one with kernels for architecture {names}: TORCH_CUDA_ARCH_LIST="
            f"'{names.replace(', ', ';')}' {_ext.BUILD_HERE}"
        )
    return "none for this machine"


def runs_on(architectures: str, capability: tuple[int, int]) -> bool:
    """Return whether kernels for these architectures, such as "80-real 90", run on a device.

    Machine code runs on later devices of the same major version, PTX on all later ones.
    """
    for name in architectures.split():
        number, _, kind = name.partition("-")
        specific = number.endswith(("a", "f"))
        built = divmod(int(number.rstrip("af")), 10)
        if built == capability:
            return True
        if not specific and kind != "virtual" and built[0] == capability[0] and built <= capability:
            return True
        if not specific and kind != "real" and built <= capability:
            return True
    return False


def has_gpu() -> bool:
    """Return whether the machine has an NVIDIA driver, even if torch does not use it."""
    return NVIDIA_DRIVER.exists() or shutil.which("nvidia-smi") is not None


def print_info() -> None:
    """Print versions, devices, the instruction set, CUDA architectures, and a better build."""
    rows = info_rows()
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def main() -> None:
    """Print the same without the packages of the command line."""
    try:
        print_info()
    except ValueError as error:  # an instruction set that this CPU lacks
        sys.stderr.write(f"fastvi: {error}\n")
        raise SystemExit(2) from None


def _capabilities() -> list[tuple[int, int]]:
    return [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
