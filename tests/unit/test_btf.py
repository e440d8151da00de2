# SPDX-License-Identifier: Apache-2.0
"""dtypes from BTF, against what the compiler says of the same C."""

import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from podscope.errors import PodscopeError
from podscope.kernel import btf

SOURCE = """
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32;
typedef unsigned long long u64; typedef u64 nanoseconds;
enum color { RED = 1, GREEN, BLUE = 40 };
enum sign { MINUS = -5, PLUS = 5 };
enum large { SMALL = 1, HUGE = 0x1122334455667788 };
struct inner { u16 port; char name[6]; };
struct plain { u8 a; u32 b; u16 c; long long d; signed char e; _Bool f; char g; };
struct full {
	const volatile nanoseconds time;
	struct inner inner;
	struct inner many[3];
	u8 address[16];
	char text[20];
	char lines[2][8];
	u32 grid[2][3];
	enum color color;
	enum sign sign;
	enum large large;
	void *pointer;
	int (*function)(void);
	float single; double twice;
	struct { u32 x; u32 y; };
	union { u64 whole; u32 halves[2]; };
	union { u8 byte; u16 word; } named;
};
struct bits { u32 whole; u32 few : 3; };
struct wide { unsigned __int128 number; };
struct tail { u32 length; u8 data[]; };
struct packed { u8 a; u64 b; u16 c; } __attribute__((packed));
struct hidden;
struct refers { struct hidden *next; struct refers *self; };
typedef struct { u8 r, g, b; } rgb;
struct plain plain; struct full full; struct bits bits; struct wide wide; struct tail tail;
struct packed packed; struct refers refers; rgb rgb_value; u32 numbers[5];
"""


def compile_c(source: str, directory: Path) -> Path:
    """Compiles C to a BPF object with BTF."""
    clang = next(filter(None, map(shutil.which, ("clang-20", "clang-19", "clang"))))
    file = directory / "source.c"
    file.write_text(source)
    target = directory / "source.o"
    subprocess.run([clang, "-target", "bpf", "-g", "-O2", "-c", file, "-o", target], check=True)
    return target


@pytest.fixture(scope="module")
def types(tmp_path_factory):
    return btf.read_elf(compile_c(SOURCE, tmp_path_factory.mktemp("btf")))


def test_integers_lie_where_c_puts_them(types):
    assert types.dtype("plain") == np.dtype(
        {
            "names": ["a", "b", "c", "d", "e", "f", "g"],
            "formats": ["u1", "u4", "u2", "i8", "i1", "?", "S1"],
            "offsets": [0, 4, 8, 16, 24, 25, 26],
            "itemsize": 32,
        }
    )


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("time", "u8"),
        ("inner", np.dtype([("port", "u2"), ("name", "S6")])),
        ("many", np.dtype((np.dtype([("port", "u2"), ("name", "S6")]), 3))),
        ("address", ("u1", 16)),
        ("text", "S20"),
        ("lines", ("S8", 2)),
        ("grid", ("u4", (2, 3))),
        ("color", "u4"),
        ("sign", "i4"),
        ("large", "u8"),
        ("pointer", "u8"),
        ("function", "u8"),
        ("single", "f4"),
        ("twice", "f8"),
        ("x", "u4"),
        ("y", "u4"),
        ("whole", "u8"),
        ("halves", ("u4", 2)),
    ],
)
def test_each_kind_of_member_has_its_dtype(types, field, expected):
    fields = types.dtype("full").fields
    assert fields[field][0] == np.dtype(expected)


def test_members_of_unnamed_unions_share_their_place(types):
    # GIVEN
    dtype = types.dtype("full")

    # WHEN
    record = np.zeros((), dtype)
    record["halves"] = (1, 2)

    # THEN
    assert record["whole"] == 1 | 2 << 32
    assert dtype.fields["y"][1] == dtype.fields["x"][1] + 4
    assert dtype["named"].fields["byte"][1] == dtype["named"].fields["word"][1] == 0


def test_packed_structs_and_typedefs_keep_their_size(types):
    assert types.dtype("packed").itemsize == 11
    assert [types.dtype("packed").fields[name][1] for name in "abc"] == [0, 1, 9]
    assert types.dtype("rgb") == np.dtype([("r", "u1"), ("g", "u1"), ("b", "u1")])
    assert types.dtype("nanoseconds") == np.dtype("u8")


def test_pointers_to_what_is_not_declared_are_addresses(types):
    assert types.dtype("refers") == np.dtype([("next", "u8"), ("self", "u8")])


def test_a_flexible_array_has_no_bytes(types):
    assert types.dtype("tail").itemsize == 4
    assert types.dtype("tail")["data"].shape == (0,)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bits", "struct bits: few is a bit field: make it a whole integer"),
        ("wide", "struct wide: number: .* of 128 bits fits no NumPy integer"),
        ("hidden", "no struct hidden"),
        ("nothing", "no struct nothing"),
    ],
)
def test_what_no_array_can_hold_is_refused_in_one_line(types, name, said):
    with pytest.raises(btf.BtfError, match=said) as error:
        types.dtype(name)
    assert "\n" not in str(error.value)


def test_enums_have_their_values_signed_and_wide(types):
    assert types.enum("color") == {"RED": 1, "GREEN": 2, "BLUE": 40}
    assert types.enum("sign") == {"MINUS": -5, "PLUS": 5}
    assert types.enum("large") == {"SMALL": 1, "HUGE": 0x1122334455667788}
    with pytest.raises(btf.BtfError, match="no enum plain"):
        types.enum("plain")


def test_variables_are_found_by_section(types):
    # WHEN
    variables = {variable.name: variable for variable in types.variables(".bss")}

    # THEN
    assert ".bss" in types.sections()
    assert {"plain", "full", "numbers"} <= variables.keys()
    assert types.dtype_of(variables["numbers"].type_id) == np.dtype(("u4", 5))
    assert variables["numbers"].size == 20
    assert types.variables(".nothing") == ()


SCALARS = {
    "unsigned char": "u1",
    "signed char": "i1",
    "char": "S1",
    "_Bool": "?",
    "short": "i2",
    "unsigned short": "u2",
    "int": "i4",
    "unsigned int": "u4",
    "long long": "i8",
    "unsigned long": "u8",
    "void *": "u8",
    "double": "f8",
}


@st.composite
def structs(draw, depth=2):
    """A struct as C text without its tag, with a list of member paths for offsetof."""
    lines, paths = [], []
    for number in range(draw(st.integers(1, 6))):
        name = f"m{number}"
        if depth and draw(st.integers(0, 3)) == 0:
            inner, inner_paths = draw(structs(depth=depth - 1))
            count = draw(st.integers(1, 3))
            lines.append(f"struct {{ {inner} }} {name}[{count}];")
            paths += [(name, *path) for path in inner_paths]
            continue
        scalar = draw(st.sampled_from(sorted(SCALARS)))
        count = draw(st.none() | st.integers(1, 9))
        lines.append(f"{scalar} {name}{'' if count is None else f'[{count}]'};")
        paths.append((name,))
    return " ".join(lines), paths


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(declared=st.lists(structs(), min_size=5, max_size=20))
def test_sizes_and_offsets_are_the_compilers(tmp_path, declared):
    # GIVEN structs, and tables of what the compiler makes of them
    source = ""
    for number, (body, paths) in enumerate(declared):
        offsets = [f"__builtin_offsetof(struct s{number}, {'[0].'.join(path)})" for path in paths]
        table = ", ".join([f"sizeof(struct s{number})", *offsets])
        section = f'__attribute__((section("table.{number}")))'
        source += f"struct s{number} {{ {body} }}; struct s{number} v{number};\n"
        source += f"{section} unsigned long long t{number}[] = {{ {table} }};\n"

    # WHEN
    compiled = compile_c(source, tmp_path)
    types = btf.read_elf(compiled)

    # THEN
    for number, (_, paths) in enumerate(declared):
        table = btf._elf_section(compiled.read_bytes(), f"table.{number}".encode())
        size, *offsets = struct.unpack(f"={len(table) // 8}Q", table)
        dtype = types.dtype(f"s{number}")
        assert dtype.itemsize == size
        assert [offset_of(dtype, path) for path in paths] == offsets


def offset_of(dtype, path):
    """Offset of a nested member, through the first element of each array."""
    total = 0
    for name in path:
        dtype, offset = dtype.base.fields[name][:2]
        total += offset
    return total


def test_the_kernels_own_types_can_be_read():
    # GIVEN
    path = Path("/sys/kernel/btf/vmlinux")
    if not path.exists():
        pytest.skip("this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)")

    # WHEN
    kernel = btf.parse(path.read_bytes())

    # THEN
    assert kernel.dtype("list_head") == np.dtype([("next", "u8"), ("prev", "u8")])
    assert kernel.dtype("in6_addr").itemsize == 16
    assert kernel.enum("bpf_map_type")["BPF_MAP_TYPE_RINGBUF"] == 27


def test_damaged_data_is_refused_and_never_crashes(types):
    # GIVEN
    data = types.data

    # WHEN / THEN cut short at any place
    for length in range(0, len(data) - 1, 7):
        try_everything(data[:length])
    with pytest.raises(btf.BtfError):
        btf.parse(data[: len(data) // 2])
    with pytest.raises(btf.BtfError, match="of another byte order"):
        btf.parse(data[:2][::-1] + data[2:])


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.integers(0), byte=st.integers(0, 255))
def test_a_wrong_byte_is_refused_or_gives_other_types(types, place, byte):
    # GIVEN
    data = bytearray(types.data)
    data[place % len(data)] = byte

    # WHEN / THEN
    try_everything(bytes(data))


def try_everything(data):
    """Uses all types; BtfError is the only exception that may come."""
    try:
        types = btf.parse(data)
    except btf.BtfError:
        return
    for kind, name in types.ids:
        for use in (types.dtype, types.enum, types.variables):
            try:
                use(name)
            except btf.BtfError:
                assert kind in btf.Kind


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a 64-bit ELF file"),
        (b"\x7fELF\x01" + bytes(100), "not a 64-bit ELF file"),
        (b"\x7fELF\x02" + bytes(10), "damaged ELF file"),
        (b"\x7fELF\x02" + bytes(100), "no BTF inside: compile it with clang -g"),
    ],
)
def test_a_file_without_btf_is_refused(tmp_path, content, said):
    # GIVEN
    path = tmp_path / "file.o"
    path.write_bytes(content)

    # WHEN / THEN
    with pytest.raises(PodscopeError, match=said):
        btf.read_elf(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(PodscopeError, match=f"{os.sep}nothing.o: No such file"):
        btf.read_elf(tmp_path / "nothing.o")
