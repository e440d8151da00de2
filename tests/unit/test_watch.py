# SPDX-License-Identifier: Apache-2.0
"""What ``podscope.watch()`` says to arguments that cannot be, before it asks the kernel."""

from __future__ import annotations

import errno
import os

import pytest

import podscope
from podscope.errors import PodscopeError
from podscope.errors import UsageError
from podscope.kernel import objects
from podscope.kernel.libbpf import BpfError
from podscope.kernel.probes import find_cgroup2
from podscope.pipeline import Watch


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"kinds": "http"}, "kinds: 'http': it must be a tuple or list, as kinds=('http',)"),
        ({"kinds": None}, "kinds: None: it must be a tuple or list"),
        ({"kinds": ()}, "kinds: none: choose from http, request"),
        ({"kinds": ("http", "ftp")}, r"kinds: ['ftp']: choose from http, request"),
        ({"interval": "x"}, "interval: 'x': it must be a number of seconds, more than 0"),
        ({"interval": float("nan")}, "interval: nan: it must be"),
        ({"interval": float("inf")}, "interval: inf: it must be"),
        ({"interval": 0}, "interval: 0: it must be"),
        ({"interval": -1.5}, "interval: -1.5: it must be"),
        ({"interval": 1e10}, "interval: 10000000000.0: it must be"),
        ({"max_series": -1}, "max_series: -1: it must be a whole number from 1 to 1000000"),
        ({"max_series": 0}, "max_series: 0: it must be"),
        ({"max_series": 10**9}, "max_series: 1000000000: it must be"),
        ({"max_series": 1.5}, "max_series: 1.5: it must be"),
        ({"routes_per_workload": -1}, "routes_per_workload: -1: it must be"),
        ({"ring_bytes": 1000}, "ring_bytes: 1000: it must be a whole number from "),
        ({"ring_bytes": 3 << 20}, "ring_bytes: 3145728: it must be a power of two, as 4194304"),
        ({"ring_bytes": 1 << 40}, "ring_bytes: 1099511627776: it must be"),
        ({"log": True}, "log: True: it must be a podscope.sources.http.RequestLog"),
        ({"cgroup": 5}, "cgroup: 5: it must be a path"),
    ],
)
def test_argument_that_cannot_be_is_one_line_that_names_it(arguments, said):
    with pytest.raises(UsageError) as caught:
        podscope.watch(**arguments)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_directory_that_is_no_cgroup_is_refused_with_the_place_of_those_that_are(tmp_path):
    # GIVEN
    try:
        mount = find_cgroup2()
    except PodscopeError:
        pytest.skip("no cgroup v2: what is said of other directories is not tested")

    # WHEN / THEN
    for path in (tmp_path, str(tmp_path), f"{mount}/no-such-group", ""):
        with pytest.raises(UsageError) as caught:
            podscope.watch(cgroup=path)
        said = f"cgroup: {os.fspath(path)!r} is no directory of cgroup v2: name one below {mount}"
        assert str(caught.value) == said


class Silent:
    """As much of a source, and of names, as a watch needs that sees no traffic."""

    def lost(self):
        return {}

    def ring_use(self):
        return 0.0

    def close(self):
        pass


@pytest.mark.parametrize("kind", ["http", "request"])
@pytest.mark.parametrize("read", [Watch.read, lambda watch: next(iter(watch))])
def test_closed_watch_is_not_read(kind, read):
    # GIVEN
    silent = Silent()
    with Watch(silent, (kind,), 0.001, silent) as watch:
        pass

    # WHEN / THEN
    with pytest.raises(PodscopeError, match="the watch is closed: read it inside of its with"):
        read(watch)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EMFILE, "libbpf: map 'earlies': failed to create: Too many open files(-24)"),
        (
            errno.EINVAL,
            "libbpf: Error in bpf_create_map_xattr(kept):Too many open files(-24). Retrying",
        ),
        (
            errno.EINVAL,
            "libbpf: prog 'http_segment': BPF program load failed: Invalid argument\n"
            "-- BEGIN PROG LOAD LOG --\nBPF map 'http.bss' is referenced but wasn't created\n"
            "-- END PROG LOAD LOG --",
        ),
    ],
)
def test_lack_of_descriptors_is_named_whatever_libbpf_makes_of_it(code, message):
    # GIVEN / WHEN
    error = objects._load_error("http", code, [message])

    # THEN
    assert error.code == errno.EMFILE
    assert str(error).endswith("(EMFILE): raise the limit of open files: ulimit -n 1024")


def test_other_refusals_keep_their_reason():
    # GIVEN
    message = "libbpf: map 'chunks': failed to create: Cannot allocate memory(-12)"

    # WHEN
    error = objects._load_error("http", errno.ENOMEM, [message])

    # THEN
    assert error.code == errno.ENOMEM
    assert "ulimit" not in str(error)
    assert "ulimit -n 1024" in str(BpfError("attach", errno.EMFILE))
