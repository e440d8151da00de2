# SPDX-License-Identifier: Apache-2.0
"""Ring buffers of the running kernel, drained as arrays."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from compile_bpf import SOURCES
from compile_bpf import compile_bpf

from podscope.errors import PodscopeError
from podscope.kernel.objects import BpfObject
from podscope.kernel.probes import has_loop
from podscope.kernel.rings import BUSY
from podscope.kernel.rings import DISCARD
from podscope.kernel.rings import Ring
from podscope.kernel.rings import choose
from podscope.kernel.rings import slot_dtype

PACKET = bytes(64)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compile_bpf(SOURCES / "rings.bpf.c", tmp_path_factory.mktemp("bpf") / "rings.bpf.o")


@pytest.fixture
def bpf(compiled):
    with BpfObject(compiled) as opened:
        yield opened.load()


@pytest.fixture
def one_cpu():
    """Sequences are by CPU: keeps the test on one."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    yield
    os.sched_setaffinity(0, cpus)


def fill(bpf, count):
    bpf.variables["wanted"][...] = count
    bpf.test_run("fill", PACKET)


def assert_whole(records):
    """Every field of every record is what the program wrote."""
    for word in range(8):
        assert np.array_equal(records["words"][:, word], records["sequence"] + word)
    assert (records["text"] == b"hello world, hello!").all()


def test_an_empty_ring_gives_an_empty_array(bpf):
    # GIVEN
    ring = Ring.of(bpf.map("records"), bpf.dtype("record"))

    # WHEN
    records = ring.drain()

    # THEN
    assert records.shape == (0,)
    assert records.dtype == bpf.dtype("record")
    assert ring.pending() == 0


@pytest.mark.usefixtures("one_cpu")
def test_records_come_whole_and_in_order_around_the_end_many_times(bpf):
    # GIVEN slots of 72 bytes, which do not divide the ring: records straddle its end
    ring = Ring.of(bpf.map("records"), bpf.dtype("record"))
    expected = 0

    for count in list(range(1, 60)) * 20:
        # WHEN
        fill(bpf, count)
        pending = ring.pending()
        records = ring.drain()

        # THEN
        assert pending == count * slot_dtype(bpf.dtype("record")).itemsize
        assert ring.pending() == 0
        assert np.array_equal(records["sequence"], np.arange(expected, expected + count))
        assert_whole(records)
        expected += count
    assert expected * 72 > 100 * 8192
    assert bpf.variables["full"] == 0


@pytest.mark.usefixtures("one_cpu")
def test_what_was_drained_stays_as_it_was(bpf):
    # GIVEN
    ring = Ring.of(bpf.map("records"), bpf.dtype("record"))
    fill(bpf, 100)
    first = ring.drain()

    # WHEN the ring goes around over the same bytes
    for _ in range(3):
        fill(bpf, 110)
        ring.drain()

    # THEN
    assert np.array_equal(first["sequence"], np.arange(100))
    assert_whole(first)


@pytest.mark.usefixtures("one_cpu")
def test_a_full_ring_keeps_what_came_first_and_takes_more_after_a_drain(bpf):
    # GIVEN
    ring = Ring.of(bpf.map("records"), bpf.dtype("record"))

    # WHEN
    fill(bpf, 1000)
    first = ring.drain()
    fill(bpf, 10)
    second = ring.drain()

    # THEN
    assert bpf.variables["full"] == 1
    assert np.array_equal(first["sequence"], np.arange(len(first)))
    assert len(first) > 100
    assert np.array_equal(second["sequence"], np.arange(len(first), len(first) + 10))


def mapped_bytes():
    """What this process has mapped of BPF maps."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if "bpf-map" in line]
    return sum(int(end, 16) - int(begin, 16) for begin, end in ranges)


@pytest.mark.usefixtures("one_cpu")
@pytest.mark.parametrize("count", [3, 1000])
def test_no_memory_is_kept_for_an_empty_ring(bpf, count):
    # GIVEN
    ring = Ring.of(bpf.map("records"), bpf.dtype("record"))
    bpf.variables["wanted"][...] = 0  # globals are mapped when they are used first
    before = mapped_bytes()

    # WHEN
    fill(bpf, count)
    taken = len(ring.drain())
    last = len(ring.drain())

    # THEN
    assert taken > 0
    assert last == 0
    assert mapped_bytes() == before


@pytest.mark.usefixtures("one_cpu")
def test_a_ring_can_be_drained_after_its_object_was_closed(compiled):
    # GIVEN
    with BpfObject(compiled) as opened:
        opened.load()
        ring = Ring.of(opened.map("records"), opened.dtype("record"))
        fill(opened, 50)

    # WHEN
    records = ring.drain()

    # THEN
    assert np.array_equal(records["sequence"], np.arange(50))
    assert_whole(records)


@pytest.mark.usefixtures("one_cpu")
def test_discarded_records_are_passed_over(bpf):
    # GIVEN
    ring = Ring.of(bpf.map("records"), bpf.dtype("record"))
    bpf.variables["discard_every"][...] = 3

    # WHEN
    fill(bpf, 100)
    records = ring.drain()

    # THEN
    assert records["sequence"].tolist() == [i for i in range(100) if i % 3]
    assert_whole(records)
    assert ring.pending() == 0


@pytest.mark.usefixtures("one_cpu")
def test_a_ring_of_discarded_records_alone_is_emptied(bpf):
    # GIVEN
    ring = Ring.of(bpf.map("records"), bpf.dtype("record"))
    bpf.variables["discard_every"][...] = 1

    # WHEN
    fill(bpf, 50)

    # THEN
    assert len(ring.drain()) == 0
    assert ring.pending() == 0


def test_writers_on_all_cpus_lose_and_tear_nothing(bpf):
    # GIVEN
    ring = Ring.of(bpf.map("records"), bpf.dtype("record"))
    bpf.variables["wanted"][...] = 7
    cpus = sorted(os.sched_getaffinity(0))
    writing = threading.Barrier(len(cpus) + 1)

    def write(cpu):
        os.sched_setaffinity(0, {cpu})
        writing.wait()
        for _ in range(300):
            bpf.test_run("fill", PACKET, repeat=5)

    threads = [threading.Thread(target=write, args=(cpu,)) for cpu in cpus]
    for thread in threads:
        thread.start()
    writing.wait()

    # WHEN
    drained = []
    while any(thread.is_alive() for thread in threads):
        drained.append(ring.drain())
    drained.append(ring.drain())
    records = np.concatenate(drained)

    # THEN a refused record's number is used by the next one: no gap may be seen
    assert_whole(records)
    for cpu in cpus:
        sequence = records["sequence"][records["cpu"] == cpu]
        assert np.array_equal(sequence, np.arange(bpf.variables["sequences"][cpu]))
        assert len(sequence) > 0


@pytest.mark.skipif(not has_loop(), reason="this kernel has no bpf_loop (Linux 5.17)")
def test_a_record_still_being_written_holds_back_those_after_it(tmp_path):
    # GIVEN a program that has reserved its second record of three
    compiled = compile_bpf(SOURCES / "ring_busy.bpf.c", tmp_path / "ring_busy.bpf.o")
    with BpfObject(compiled) as bpf:
        bpf.load()
        ring = Ring.of(bpf.map("records"), "u8")
        writer = threading.Thread(target=bpf.test_run, args=("hold", PACKET))
        writer.start()
        try:
            while not bpf.variables["holding"]:
                time.sleep(0.001)

            # WHEN
            during = [ring.drain().tolist(), ring.drain().tolist(), ring.pending()]
        finally:
            bpf.variables["release"][...] = 1
            writer.join()
        after = ring.drain().tolist()

    # THEN
    assert during == [[1], [], 32]
    assert after == [2, 3]


def test_a_record_of_another_size_is_refused_and_nothing_is_taken(bpf):
    # GIVEN
    right = Ring.of(bpf.map("others"), bpf.dtype("record"))
    wrong = Ring.of(bpf.map("others"), "u8")
    bpf.test_run("mixed", PACKET)
    pending = right.pending()

    # WHEN / THEN
    with pytest.raises(PodscopeError, match="ring others: records of 8 bytes, not of 60"):
        right.drain()
    with pytest.raises(PodscopeError, match="ring others: records of 60 bytes, not of 8"):
        wrong.drain()
    assert right.pending() == pending > 0


def test_a_map_that_is_no_ring_of_that_size_is_refused(bpf):
    # GIVEN
    info = bpf.map("records")

    # WHEN / THEN
    with pytest.raises(PodscopeError, match="records: not a ring buffer of 4096 bytes"):
        Ring(info.fd, 4096, "u8")
    with pytest.raises(PodscopeError, match="not a ring buffer"):
        Ring.of(bpf.map(".bss"), "u8")


@pytest.mark.parametrize(
    ("headers", "whole", "kept"),
    [
        ([], 0, None),
        ([24, 24], 2, None),
        ([24 | BUSY, 24], 0, []),
        ([24, 24 | DISCARD, 24 | BUSY, 16], 2, [True, False]),
        ([24, 16, 24 | BUSY], -1, None),
        ([16 | DISCARD], -1, None),
    ],
)
def test_the_choice_by_headers(headers, whole, kept):
    # WHEN
    found = choose(np.array(headers, "u4"), 24)

    # THEN
    assert found[0] == whole
    assert (None if found[1] is None else found[1].tolist()) == kept
