"""What ``ptx/reader.py`` and ``ptx/translate.py`` make of a few lines of PTX."""

from __future__ import annotations

import pytest
from ptx.instructions import Unsupported
from ptx.reader import Instruction, read
from ptx.translate import translate

HEAD = """
.version 9.0
.target sm_90
.address_size 64
.global .align 4 .b8 numbers[8] = {1, 2, 3};
.shared .align 16 .b8 outer[64];
.visible .entry first(
    .param .align 8 .b8 first_param_0[12],
    .param .u64 first_param_1
)
.maxntid 256, 1, 1
{
    .reg .pred %p<3>;
    .reg .b32 %r<5>;
    .reg .f32 %f<3>;
    .reg .b64 %rd<4>;
    .shared .align 4 .b8 inner[12];
"""


def kernel(*lines: str):
    return read(HEAD + "\n".join(lines) + "\nret;\n}\n").kernels[0]


def written(*lines: str) -> str:
    return translate(read(HEAD + "\n".join(lines) + "\nret;\n}\n"))


def test_the_frame_of_a_kernel():
    found = kernel("mov.u64 %rd1, outer;", "mov.u64 %rd2, inner; // not hidden")
    assert found.parameters == {"first_param_0": 0, "first_param_1": 16}
    assert found.parameter_bytes == 24
    assert found.most_threads == 256
    assert sorted(found.shared.values()) == [0, 64]
    assert found.shared_bytes == 76
    assert [line.opcode for line in found.instructions] == [
        ("mov", "u64"),
        ("mov", "u64"),
        ("ret",),
    ]


def test_shared_memory_of_other_kernels_is_not_counted():
    assert kernel().shared == {"inner": 0}


def test_a_table_of_the_module():
    assert read(HEAD + "ret;\n}\n").constants == {"numbers": (4, [1, 2, 3, 0, 0, 0, 0, 0])}


def test_scopes_have_registers_of_their_own():
    found = kernel(
        "{ .reg .u64 p; mul.wide.u32 p, %r1, %r2; mov.b64 {%r3, %r4}, p; }",
        "{ .reg .b16 p; cvt.u16.u32 p, %r1; }",
    )
    first, parts, second = found.instructions[:3]
    assert first.operands[0] != second.operands[0]
    assert parts.operands == ("{%r3, %r4}", first.operands[0])


def test_guards_and_labels():
    found = kernel("@!%p1 bra $end;", "add.s32 %r1, %r2, 3;", "$end:")
    assert found.instructions[0] == Instruction("@!%p1 bra $end", "%p1", True, ("bra",), ("$end",))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param(
            "add.rn.f32 %f1, %f2, 0f3F800000;", "f[1] = f[2] + as_f32(0x3F800000u);", id="add"
        ),
        pytest.param("setp.ltu.f32 %p1, %f1, %f2;", "p[1] = !(f[1] >= f[2]);", id="unordered"),
        pytest.param(
            "@%p1 st.shared.v2.f32 [%r1+8], {%f1, %f2};",
            "if (p[1]) { { char* q = t.shared((uint64_t)r[1] + (8), 8, Access::write); "
            "*(float*)(q + 0) = f[1]; *(float*)(q + 4) = f[2]; } }",
            id="vector",
        ),
        pytest.param(
            "shfl.sync.bfly.b32 %r1|%p1, %r2, 16, 31, -1;",
            "t.together(Meeting::bfly, r[2], (uint32_t)16ull, (uint32_t)31ull, "
            "(uint32_t)18446744073709551615ull); t.place = 1; return; case 1:; "
            "r[1] = t.result; p[1] = t.flag;",
            id="shuffle",
        ),
    ],
)
def test_lines(line: str, expected: str):
    assert expected in written(line)


def test_stretches_count_their_instructions():
    text = written("mov.u32 %r1, 0;", "$again:", "add.s32 %r1, %r1, 1;", "@%p1 bra $again;")
    assert "kernel_0_lengths[3] = {1, 2, 1}" in text


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("add.ftz.f32 %f1, %f1, %f2;", id="flushing"),
        pytest.param("tex.2d.v4.f32.f32 {%f1, %f1, %f1, %f1}, [%rd1, {%f1, %f1}];", id="opcode"),
        pytest.param("@%p1 bar.sync 0;", id="guarded wait"),
        pytest.param("bar.sync 1;", id="second barrier"),
        pytest.param("ld.global.unknown.f32 %f1, [%rd1];", id="modifier"),
        pytest.param("mov.u32 %r1, %clock;", id="register"),
        pytest.param("shfl.bfly.b32 %r1, %r2, 1, 31;", id="shuffle without mask"),
    ],
)
def test_what_is_not_known_is_refused_by_name(line: str):
    with pytest.raises(Unsupported, match="first: "):
        written(line)


def test_a_barrier_can_be_left_out():
    lines = ("bar.sync 0;", "add.s32 %r1, %r1, 1;", "bar.sync 0;")
    module = read(HEAD + "\n".join(lines) + "\nret;\n}\n")
    assert translate(module).count("t.at_barrier()") == 2
    assert translate(module, ("first", 1)).count("t.at_barrier()") == 1
    with pytest.raises(AssertionError, match="no such barrier"):
        translate(module, ("first", 2))
