"""What importing fastvi asks of a CPU: no more than x86-64-v2, whatever kernels are on board."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import cuda_build
import pytest

import fastvi

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names of x86-64"),
]
# Of x86-64-v3 and later, beside those that start with v. tzcnt is an older CPU's bsf.
LATER = {
    *("andn", "bextr", "blsi", "blsmsk", "blsr", "bzhi", "lzcnt", "movbe", "mulx", "pdep", "pext"),
    *("rorx", "sarx", "shlx", "shrx", "adcx", "adox"),
}
NOT_LATER = {"verr", "verw"}
# A function of another instruction set has its name in its own, and in the file's.
OF_A_SET = re.compile(r"avx2|avx512")


def later_instructions(lines: Iterable[str]) -> dict[str, set[str]]:
    """Instructions that x86-64-v2 has not, by the function they are in, from objdump's lines."""
    found: dict[str, set[str]] = {}
    function = ""
    for line in lines:
        if line.endswith(">:\n"):
            function = line.partition("<")[2][:-3]
            continue
        words = line.partition(":\t")[2].split(maxsplit=1)
        if not words:
            continue
        name = words[0]
        if (name[0] == "v" and name not in NOT_LATER) or name.rstrip("lqw") in LATER:
            found.setdefault(function, set()).add(name)
    return found


def test_the_reader_tells_them_apart():
    lines = [
        "0000000000001000 <plain>:\n",
        "    1000:\tmovaps %xmm0,%xmm1\n",
        "    1003:\ttzcnt  %eax,%eax\n",
        "0000000000001010 <wide>:\n",
        "    1010:\tvmovaps %ymm0,%ymm1\n",
        "    1015:\tandn   %rax,%rbx,%rcx\n",
        "    101a:\tmulxq  (%rsi),%rax,%rdx\n",
    ]
    assert later_instructions(lines) == {"wide": {"vmovaps", "andn", "mulxq"}}


def test_flags():
    """Only the kernels of a set are compiled for more than the compiler's default."""
    cuda_build.configure()
    commands = json.loads((cuda_build.folder() / "compile_commands.json").read_text())
    by_set: dict[str, set[str]] = {}
    for entry in commands:
        words = entry["command"].split()
        target = re.search(r"CMakeFiles/(\w+)\.dir", words[words.index("-o") + 1])
        assert target is not None
        wide = {word for word in words if re.match(r"-m(?!no-)", word)}
        by_set.setdefault(target[1], set()).update(wide)
    assert {"fastvi_torch", "fastvi_isa", "_C", "fastvi_cpu_baseline"} <= set(by_set)
    for target, wide in by_set.items():
        if not OF_A_SET.search(target):
            assert not wide, target
    assert "-mavx2" in by_set["fastvi_cpu_avx2"] and "-mavx512f" in by_set["fastvi_cpu_avx512"]


@pytest.mark.slow
def test_instructions():
    """Of the whole library, so that a function that the linker chose among several is seen."""
    if (objdump := shutil.which("objdump")) is None:
        pytest.skip("no objdump on this machine")
    (library,) = Path(fastvi.__file__).parent.glob("_C*.so")
    command = [objdump, "-d", "--no-show-raw-insn", str(library)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = later_instructions(process.stdout)
    assert process.returncode == 0
    of_a_set = [name for name in found if OF_A_SET.search(name)]
    if not of_a_set:
        pytest.skip("a library without the names of its functions")
    assert {name: found[name] for name in set(found) - set(of_a_set)} == {}
