# SPDX-License-Identifier: Apache-2.0
"""Maps of the running kernel, read and written in bulk."""

import os
import threading

import numpy as np
import pytest
from compile_bpf import SOURCES
from compile_bpf import compile_bpf

from podscope.errors import PodscopeError
from podscope.kernel.libbpf import BpfError
from podscope.kernel.maps import HashMap
from podscope.kernel.maps import MmapArray
from podscope.kernel.maps import StackMap
from podscope.kernel.objects import BpfObject


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compile_bpf(SOURCES / "maps.bpf.c", tmp_path_factory.mktemp("bpf") / "maps.bpf.o")


@pytest.fixture
def bpf(compiled):
    with BpfObject(compiled) as opened:
        yield opened.load()


def filled(table, count):
    """Puts ``count`` entries with different keys into the hash map; the value's count is 2 x."""
    for number in range(count):
        table.update((number, number % 7, 0), (2 * number, (number, 1, 2), 0))


def test_an_empty_map_gives_empty_arrays_of_its_types(bpf):
    # GIVEN
    table = HashMap.of(bpf.map("hash"))

    # WHEN
    keys, values = table.items()

    # THEN
    assert (len(keys), len(values)) == (0, 0)
    assert keys.dtype == bpf.dtype("key")
    assert values.dtype == bpf.dtype("value")


@pytest.mark.parametrize("count", [1, 100, 20000])
def test_items_gives_every_entry_once(bpf, count):
    # GIVEN more entries than one system call gives, for the largest
    table = HashMap.of(bpf.map("hash"))
    filled(table, count)

    # WHEN
    keys, values = table.items()

    # THEN
    order = np.argsort(keys["number"], kind="stable")
    numbers = np.arange(count)
    assert np.array_equal(keys["number"][order], numbers)
    assert np.array_equal(keys["port"][order], numbers % 7)
    assert np.array_equal(values["count"][order], 2 * numbers)
    assert np.array_equal(values["parts"][order][:, 0], numbers)


def test_a_full_small_map_is_read_whole(compiled):
    # GIVEN a table whose buckets overflow any small buffer
    with BpfObject(compiled) as opened:
        opened.resize_map("hash", 3)
        table = HashMap.of(opened.load().map("hash"))
        filled(table, 3)

        # WHEN
        keys, _ = table.items()

    # THEN
    assert sorted(keys["number"]) == [0, 1, 2]


def test_the_walk_by_key_gives_the_same_as_batches(bpf):
    # GIVEN
    table = HashMap.of(bpf.map("hash"))
    filled(table, 500)

    # WHEN
    batch_keys, batch_values = table.items()
    walk_keys, walk_values = table._walk()

    # THEN
    batch_order = np.argsort(batch_keys["number"], kind="stable")
    walk_order = np.argsort(walk_keys["number"], kind="stable")
    assert np.array_equal(batch_keys[batch_order], walk_keys[walk_order])
    assert np.array_equal(batch_values[batch_order], walk_values[walk_order])


def test_reading_goes_on_while_another_thread_writes(bpf):
    # GIVEN keys that stay and others that come and go
    table = HashMap.of(bpf.map("hash"))
    filled(table, 300)
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            for number in range(1000, 1050):
                table.update((number, 0, 0), (0, (0, 0, 0), 0))
            for number in range(1000, 1050):
                table.delete((number, 0, 0))

    thread = threading.Thread(target=churn)
    thread.start()

    # WHEN
    try:
        reads = [read()[0]["number"] for read in (table.items, table._walk) * 20]
    finally:
        stop.set()
        thread.join()

    # THEN the walk may lose its place, never a batch
    for read in reads[::2]:
        assert set(range(300)) <= set(read.tolist())
    for read in reads[1::2]:
        assert len(set(read.tolist())) == len(read)


def test_lookup_update_and_delete_one_entry(bpf):
    # GIVEN
    table = HashMap.of(bpf.map("hash"))
    table.update((5, 80, 0), (1, (0, 0, 0), 0))

    # WHEN
    table.update((5, 80, 0), (2, (7, 8, 9), 0))
    found = table.lookup((5, 80, 0))

    # THEN
    assert found is not None
    assert found["count"] == 2
    assert found["parts"].tolist() == [7, 8, 9]
    assert table.lookup((5, 81, 0)) is None
    assert table.delete((5, 80, 0)) is True
    assert table.delete((5, 80, 0)) is False
    assert table.lookup((5, 80, 0)) is None


def test_delete_many_passes_over_keys_that_are_gone(bpf):
    # GIVEN
    table = HashMap.of(bpf.map("hash"))
    filled(table, 10)
    keys, _ = table.items()
    table.delete(keys[0])

    # WHEN
    deleted = table.delete_many(keys[:6])

    # THEN
    assert deleted == 5
    assert sorted(table.items()[0].tolist()) == sorted(keys[6:].tolist())


def test_a_full_map_refuses_an_update(bpf):
    # GIVEN
    table = HashMap.of(bpf.map("per_cpu"))
    for key in range(8):
        table.update(key, 0)

    # WHEN / THEN
    with pytest.raises(BpfError, match="per_cpu: update: Argument list too long"):
        table.update(8, 0)


def test_per_cpu_values_have_an_axis_of_cpus(bpf):
    # GIVEN
    table = HashMap.of(bpf.map("per_cpu"))
    table.update(3, 0)

    # WHEN
    for _ in range(4):
        bpf.test_run("count", bytes(64), repeat=5)
    keys, values = table.items()

    # THEN
    assert keys.tolist() == [3]
    assert values.ndim == 2
    assert values.sum() == 20


def test_per_cpu_arrays_are_read_with_or_without_batches(bpf):
    # GIVEN
    table = HashMap.of(bpf.map("per_cpu_array"))
    table.update(4, 6)

    # WHEN
    keys, values = table.items()

    # THEN
    assert keys.tolist() == [0, 1, 2, 3, 4]
    assert (values[4] == 6).all()
    assert not values[:4].any()


def test_dtypes_of_another_size_are_refused(bpf):
    # GIVEN
    info = bpf.map("hash")

    # WHEN / THEN
    with pytest.raises(PodscopeError, match="hash: values are 24 bytes, the dtype has 8"):
        HashMap(info.fd, info.key, "u8", info.max_entries)
    with pytest.raises(PodscopeError, match="hash: keys are 8 bytes"):
        HashMap(info.fd, "u4", info.value, info.max_entries)


def test_a_descriptor_that_is_no_map_is_refused(tmp_path):
    # GIVEN
    fd = os.open(tmp_path, os.O_RDONLY)

    # WHEN / THEN
    try:
        with pytest.raises(BpfError, match="map descriptor"):
            HashMap(fd, "u4", "u8", 1)
    finally:
        os.close(fd)


def test_a_mapped_array_is_the_map_itself(bpf):
    # GIVEN
    mapped = MmapArray.of(bpf.map("mapped")).array
    table = HashMap.of(bpf.map("mapped"))

    # WHEN
    bpf.test_run("count", bytes(64), repeat=9)
    mapped["parts"][599] = (1, 2, 3)

    # THEN
    assert mapped.shape == (600,)
    assert mapped["count"].sum() == mapped["count"][3] == 9
    found = table.lookup(599)
    assert found is not None
    assert found["parts"].tolist() == [1, 2, 3]


def test_a_mapped_array_takes_another_shape_of_the_same_bytes(bpf):
    # GIVEN
    info = bpf.map("mapped")

    # WHEN
    by_group = MmapArray(info.fd, info.value, (300, 2)).array
    words = MmapArray(info.fd, "u8", (600, 3)).array
    by_group["count"][1, 1] = 5

    # THEN
    assert words[3].tolist() == [5, 0, 0]


def test_the_first_values_of_an_array_can_be_mapped_alone(bpf):
    # GIVEN
    info = bpf.map("mapped")
    odd = bpf.map("mapped_odd")

    # WHEN
    first = MmapArray(info.fd, info.value, (2, 2)).array
    first_odd = MmapArray(odd.fd, odd.value, 2).array
    HashMap.of(info).update(3, (7, (8, 9, 10), 0))
    HashMap.of(odd).update(1, ([4, 5, 6],))

    # THEN
    assert first["count"].tolist() == [[0, 0], [0, 7]]
    assert first_odd["words"].tolist() == [[0, 0, 0], [4, 5, 6]]


def test_a_mapped_array_of_values_of_twelve_bytes_keeps_the_kernels_stride(bpf):
    # GIVEN
    mapped = MmapArray.of(bpf.map("mapped_odd")).array

    # WHEN
    HashMap.of(bpf.map("mapped_odd")).update(2, ([7, 8, 9],))

    # THEN
    assert mapped["words"].tolist() == [[0, 0, 0], [0, 0, 0], [7, 8, 9]]


def test_what_cannot_be_mapped_is_refused(bpf):
    # GIVEN
    info = bpf.map("mapped")

    # WHEN / THEN
    with pytest.raises(PodscopeError, match="array: not an array with BPF_F_MMAPABLE"):
        MmapArray.of(bpf.map("array"))
    with pytest.raises(PodscopeError, match="not an array with BPF_F_MMAPABLE"):
        MmapArray.of(bpf.map("hash"))
    with pytest.raises(PodscopeError, match="are not an array of shape"):
        MmapArray(info.fd, info.value, (601,))


def test_a_stack_gives_the_last_first(bpf):
    # GIVEN
    stack = StackMap(bpf.map("stack").fd, bpf.dtype("value"))
    values = np.zeros(100, bpf.dtype("value"))
    values["count"] = range(100)

    # WHEN
    stack.push(values)
    popped = [stack.pop()["count"] for _ in range(100)]

    # THEN
    assert popped == list(range(99, -1, -1))
    assert stack.pop() is None


def test_a_queue_gives_the_first_first_and_refuses_more_than_fits(bpf):
    # GIVEN
    queue = StackMap(bpf.map("queue").fd, "u4")

    # WHEN
    with pytest.raises(BpfError, match="queue: push: Argument list too long"):
        queue.push(np.arange(101))

    # THEN what came before the refusal is there
    assert [int(queue.pop()) for _ in range(100)] == list(range(100))


def test_a_hash_map_is_no_stack(bpf):
    # GIVEN
    info = bpf.map("hash")

    # WHEN / THEN
    with pytest.raises(PodscopeError, match="neither a stack nor a queue"):
        StackMap(info.fd, info.value)
