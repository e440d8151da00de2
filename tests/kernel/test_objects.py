# SPDX-License-Identifier: Apache-2.0
"""BPF objects on the running kernel: constants, globals, attaching, and what is refused."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from compile_bpf import SOURCES
from compile_bpf import compile_bpf

from podscope.errors import PodscopeError
from podscope.kernel.libbpf import BpfError
from podscope.kernel.objects import BpfObject
from podscope.kernel.objects import LoadError
from podscope.kernel.probes import find_cgroup2

PACKET = bytes(64)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compile_bpf(SOURCES / "objects.bpf.c", tmp_path_factory.mktemp("bpf") / "objects.bpf.o")


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    return compile_bpf(SOURCES / "refused.bpf.c", tmp_path_factory.mktemp("bpf") / "refused.bpf.o")


@pytest.fixture
def bpf(compiled):
    with BpfObject(compiled) as opened:
        yield opened


@pytest.fixture
def cgroup():
    path = Path(tempfile.mkdtemp(prefix="podscope-test-", dir=find_cgroup2()))
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)
    path.rmdir()


def test_constants_reach_the_program(bpf):
    # GIVEN
    bpf.set_constants(factor=3, table=[1, 2, 9, 4], shift=-4, label=b"blue")
    bpf.load()

    # WHEN
    run = bpf.test_run("multiply", PACKET)

    # THEN
    assert run.result == 21
    assert bpf.variables["sums"].tolist() == [0, 5, 0]
    assert bpf.variables["seen"]["color"] == bpf.enum("color")["BLUE"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("factr", 1, "no constant factr; there are: factor, label, shift, table"),
        ("factor", 1 << 32, "constant factor"),
        ("factor", -1, "constant factor"),
        ("factor", 1.5, "1.5 does not fit uint32"),
        ("factor", "many", "constant factor"),
        ("shift", 40000, "constant shift"),
        ("table", [1, 2, 3], "constant table"),
        ("label", b"longer than 8", "does not fit"),
    ],
)
def test_constants_that_do_not_fit_are_refused_in_one_line(bpf, name, value, said):
    # WHEN
    with pytest.raises(PodscopeError) as refusal:
        bpf.set_constants(**{name: value})

    # THEN
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_variables_are_live_both_ways(bpf):
    # GIVEN
    variables = bpf.load().variables
    assert variables["start"] == 7
    assert variables["runs"] == 0

    # WHEN
    bpf.test_run("multiply", PACKET, repeat=5)
    variables["start"][...] = 100

    # THEN
    assert variables["runs"] == 5
    assert variables["seen"].shape == ()
    assert variables["seen"]["packets"] == 5
    assert variables["seen"]["bytes"] == len(PACKET)
    assert bpf.test_run("multiply", PACKET).result == 100


def test_variables_outlive_the_object(compiled):
    # GIVEN
    with BpfObject(compiled) as opened:
        runs = opened.load().variables["runs"]
        opened.test_run("multiply", PACKET)

    # WHEN / THEN the mapping holds the memory
    assert runs == 1


def test_a_map_is_described_with_the_types_of_its_declaration(bpf):
    # GIVEN
    bpf.resize_map("table_map", 64)

    # WHEN
    info = bpf.load().map("table_map")

    # THEN
    assert (info.name, info.max_entries) == ("table_map", 64)
    assert info.key == np.dtype("u4")
    assert info.value == bpf.dtype("seen")
    assert info.value.itemsize == info.value_size == 16


def test_a_disabled_program_is_not_loaded(bpf):
    # GIVEN
    bpf.disable("switches")

    # WHEN
    bpf.load()

    # THEN
    assert bpf.program_fd("multiply") > 0
    with pytest.raises(PodscopeError, match="program switches is not loaded"):
        bpf.attach("switches")


def test_programs_are_listed(bpf):
    assert bpf.programs() == ("multiply", "count_egress", "tasks", "switches")


def test_an_iterator_runs_to_its_end_and_may_run_again(bpf):
    # GIVEN
    bpf.load()

    # WHEN
    first = bpf.run_iter("tasks")
    after_first = int(bpf.variables["runs"])
    second = bpf.run_iter("tasks")

    # THEN
    assert first == b"task" * after_first
    assert len(second) == 4 * (int(bpf.variables["runs"]) - after_first)
    assert after_first > 1


def test_an_attached_tracepoint_runs_until_its_link_is_closed(bpf):
    # GIVEN
    runs = bpf.load().variables["runs"]

    # WHEN
    link = bpf.attach("switches")
    for _ in range(10):
        subprocess.run(["true"], check=True)
    during = int(runs)
    link.close()
    link.close()
    before = int(runs)
    for _ in range(10):
        subprocess.run(["true"], check=True)

    # THEN
    assert during > 0
    assert int(runs) == before
    with pytest.raises(PodscopeError, match="the link is closed"):
        _ = link.fd


def send_one_packet(cgroup_path):
    """Sends a datagram over loopback from a process inside the cgroup."""
    code = (
        f"open({cgroup_path + '/cgroup.procs'!r}, 'w').write('0');"
        "import socket; socket.socket(type=2).sendto(b'x', ('127.0.0.1', 9))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_cgroup_program_sees_the_packets_of_its_cgroup(bpf, cgroup):
    # GIVEN
    runs = bpf.load().variables["runs"]
    path = os.readlink(f"/proc/self/fd/{cgroup}")

    # WHEN
    with bpf.attach_cgroup("count_egress", cgroup):
        send_one_packet(path)
    attached = int(runs)
    send_one_packet(path)

    # THEN
    assert attached == 1
    assert int(runs) == attached


def test_a_killed_process_leaves_nothing_attached(compiled, cgroup):
    # GIVEN a process that attaches, tells so and waits
    path = os.readlink(f"/proc/self/fd/{cgroup}")
    code = f"""
import os, pathlib, time
from podscope.kernel.objects import BpfObject
bpf = BpfObject(pathlib.Path({str(compiled)!r})).load()
link = bpf.attach_cgroup("count_egress", os.open({path!r}, os.O_RDONLY))
print("attached", flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"attached\n"
        assert attached_programs(cgroup) == 1

        # WHEN
        process.kill()

    # THEN
    assert attached_programs(cgroup) == 0


def attached_programs(cgroup_fd):
    """Programs at cgroup_skb/egress of a cgroup, by BPF_PROG_QUERY."""
    import ctypes

    from podscope.kernel.libbpf import libbpf

    count = ctypes.c_uint32()
    flags = ctypes.c_uint32()
    library = ctypes.CDLL(libbpf().path)
    code = library.bpf_prog_query(cgroup_fd, 1, 0, ctypes.byref(flags), None, ctypes.byref(count))
    assert code == 0
    return count.value


def test_attaching_to_what_is_no_cgroup_is_refused(bpf):
    # GIVEN
    bpf.load()
    fd = os.open("/tmp", os.O_RDONLY)

    # WHEN / THEN
    try:
        with pytest.raises(BpfError, match="attach count_egress to the cgroup: Bad file"):
            bpf.attach_cgroup("count_egress", fd)
    finally:
        os.close(fd)


def test_a_refused_program_is_named_with_the_verifiers_reason(refused):
    # GIVEN
    with BpfObject(refused) as opened, pytest.raises(LoadError) as refusal:
        # WHEN
        opened.load()

    # THEN
    error = refusal.value
    assert str(error) == (
        "refused: the kernel refused program no_null_check (EACCES): "
        "R0 invalid mem access 'map_value_or_null'"
    )
    assert error.program == "no_null_check"
    assert "bpf_map_lookup_elem" in error.log


def test_libbpf_prints_nothing(refused, capfd):
    # GIVEN
    with BpfObject(refused) as opened, pytest.raises(LoadError):
        # WHEN
        opened.load()

    # THEN
    assert capfd.readouterr() == ("", "")


def test_a_map_that_cannot_be_made_is_named(bpf):
    # GIVEN more entries than any kernel allows
    bpf.resize_map("table_map", 1 << 31)

    # WHEN
    with pytest.raises(LoadError) as refusal:
        bpf.load()

    # THEN
    assert "table_map" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda bpf: bpf.map("nothing"), "no map nothing"),
        (lambda bpf: bpf.program_fd("nothing"), "no program nothing"),
        (lambda bpf: bpf.map("table_map"), "table_map is not loaded"),
        (lambda bpf: bpf.variables, "is not loaded"),
        (lambda bpf: bpf.attach("switches"), "switches is not loaded"),
        (lambda bpf: bpf.run_iter("tasks"), "tasks is not loaded"),
        (lambda bpf: bpf.dtype("nothing"), "no struct nothing"),
        (lambda bpf: bpf.enum("nothing"), "no enum nothing"),
    ],
)
def test_use_before_the_load_is_refused(bpf, use, said):
    with pytest.raises(PodscopeError, match=said):
        use(bpf)


@pytest.mark.parametrize(
    "use",
    [
        lambda bpf: bpf.load(),
        lambda bpf: bpf.set_constants(factor=2),
        lambda bpf: bpf.resize_map("table_map", 8),
        lambda bpf: bpf.disable("tasks"),
    ],
)
def test_changes_after_the_load_are_refused(bpf, use):
    # GIVEN
    bpf.load()

    # WHEN / THEN
    with pytest.raises(PodscopeError, match="too late"):
        use(bpf)


def test_a_closed_object_is_refused(compiled):
    # GIVEN
    opened = BpfObject(compiled)
    opened.close()
    opened.close()

    # WHEN / THEN
    with pytest.raises(PodscopeError, match="closed"):
        opened.load()


def test_a_missing_or_damaged_file_is_one_line(tmp_path):
    # GIVEN
    damaged = tmp_path / "damaged.bpf.o"
    damaged.write_bytes(b"not an object")

    # WHEN / THEN
    with pytest.raises(PodscopeError, match=r"nothing\.bpf\.o is missing: run make"):
        BpfObject.open("nothing")
    with pytest.raises(PodscopeError, match=r"damaged\.bpf\.o"):
        BpfObject(damaged)


def test_an_object_without_btf_is_refused(tmp_path):
    # GIVEN
    stripped = tmp_path / "stripped.bpf.o"
    source = tmp_path / "stripped.bpf.c"
    source.write_text('__attribute__((section("tc"))) int nothing(void *skb) { return 0; }')
    compile_bpf(source, stripped, "-g0")

    # WHEN / THEN
    with pytest.raises(PodscopeError, match="no BTF inside: compile it with clang -g"):
        BpfObject(stripped)


def test_without_rights_the_load_says_what_is_needed(compiled):
    # GIVEN a process of the user nobody
    code = f"""
import os, pathlib
from podscope.kernel.objects import BpfObject, LoadError
bpf = BpfObject(pathlib.Path({str(compiled)!r}))
os.setgid(65534); os.setuid(65534)
try:
    bpf.load()
except LoadError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    # WHEN
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )

    # THEN
    assert done.stdout.endswith(
        "(EPERM): run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON\n"
    )
    assert done.stdout.count("\n") == 1


def test_runs_that_the_kernel_has_left_out_are_counted(tmp_path):
    # GIVEN a program that would run inside of itself
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if release < (6, 2):
        pytest.skip("before Linux 6.2 nothing is left out: the program would never end")
    path = compile_bpf(SOURCES / "recursion.bpf.c", tmp_path / "recursion.bpf.o")
    with BpfObject(path) as opened:
        opened.load()
        opened.attach("printed")

        # WHEN
        for _ in range(3):
            opened.test_run("print", PACKET)

        # THEN
        assert opened.missed(["printed"]) == opened.variables["ran"] >= 3
        assert opened.missed(["print"]) == 0
