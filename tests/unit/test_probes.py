# SPDX-License-Identifier: Apache-2.0
"""Findings about this machine, and where cgroup v2 is found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from podscope.errors import PodscopeError
from podscope.kernel import libbpf
from podscope.kernel.probes import AS_ROOT
from podscope.kernel.probes import find_cgroup2
from podscope.kernel.probes import probe

LINE = "{} 25 0:26 {} {} rw,nosuid shared:9 - {} {} rw\n"


def mountinfo(tmp_path, *mounts):
    """A mountinfo file with (root, point, type); each point is made, with cgroup.procs in v2."""
    lines = []
    for number, (root, point, kind) in enumerate(mounts):
        place = tmp_path / point
        place.mkdir(parents=True, exist_ok=True)
        if kind == "cgroup2":
            (place / "cgroup.procs").touch()
        shown = str(place).replace("\\", "\\134").replace(" ", "\\040")
        lines.append(LINE.format(number, root, shown, kind, kind))
    file = tmp_path / "mountinfo"
    file.write_text("".join(lines))
    return file


def test_cgroup2_alone_is_found(tmp_path):
    # GIVEN
    file = mountinfo(tmp_path, ("/", "proc", "proc"), ("/", "cgroup", "cgroup2"))

    # WHEN / THEN
    assert find_cgroup2(file) == str(tmp_path / "cgroup")


def test_cgroup2_beside_v1_is_found(tmp_path):
    # GIVEN
    file = mountinfo(
        tmp_path,
        ("/", "cgroup", "tmpfs"),
        ("/", "cgroup/cpu", "cgroup"),
        ("/", "cgroup/unified", "cgroup2"),
    )

    # WHEN / THEN
    assert find_cgroup2(file) == str(tmp_path / "cgroup/unified")


def test_the_whole_tree_goes_before_a_part_of_it(tmp_path):
    # GIVEN
    file = mountinfo(tmp_path, ("/pod1", "part", "cgroup2"), ("/", "whole", "cgroup2"))

    # WHEN / THEN
    assert find_cgroup2(file) == str(tmp_path / "whole")


def test_in_a_container_the_hosts_tree_goes_before_its_own(tmp_path):
    # GIVEN the view from a cgroup namespace two levels down
    file = mountinfo(
        tmp_path,
        ("/", "own", "cgroup2"),
        ("/../../..", "host", "cgroup2"),
        ("/../other", "sibling", "cgroup2"),
    )

    # WHEN / THEN
    assert find_cgroup2(file) == str(tmp_path / "host")


def test_a_path_with_blanks_and_backslashes_is_read_back(tmp_path):
    # GIVEN
    file = mountinfo(tmp_path, ("/", "my \\ groups", "cgroup2"))

    # WHEN / THEN
    assert find_cgroup2(file) == str(tmp_path / "my \\ groups")


def test_a_mount_hidden_by_another_is_passed_over(tmp_path):
    # GIVEN
    file = mountinfo(tmp_path, ("/", "hidden", "cgroup2"), ("/", "seen", "cgroup2"))
    (tmp_path / "hidden/cgroup.procs").unlink()

    # WHEN / THEN
    assert find_cgroup2(file) == str(tmp_path / "seen")


@pytest.mark.parametrize("mounts", [[], [("/", "cgroup/cpu", "cgroup")]])
def test_without_cgroup2_the_error_says_how_to_mount_it(tmp_path, mounts):
    # GIVEN
    file = mountinfo(tmp_path, *mounts)

    # WHEN
    with pytest.raises(PodscopeError) as error:
        find_cgroup2(file)

    # THEN
    assert "mount -t cgroup2" in str(error.value)
    assert "\n" not in str(error.value)


def test_without_proc_the_error_says_so(tmp_path):
    with pytest.raises(PodscopeError, match="mount /proc"):
        find_cgroup2(tmp_path / "nothing")


def test_every_finding_that_fails_says_why_and_what_to_do():
    # WHEN
    findings = probe()

    # THEN
    assert len({finding.feature for finding in findings}) == len(findings) >= 14
    for finding in findings:
        assert finding.detail
        assert "\n" not in finding.detail + finding.remedy
        assert finding.ok == (finding.remedy == "")


def test_without_libbpf_the_finding_says_what_to_install(monkeypatch):
    # GIVEN names that no library has
    monkeypatch.setattr(libbpf, "SYSTEM", "libbpf.so.99")
    monkeypatch.setattr(libbpf, "BUNDLED", Path("/nowhere/libbpf.so"))
    libbpf.libbpf.cache_clear()

    # WHEN
    try:
        findings = {finding.feature: finding for finding in probe()}
        with pytest.raises(PodscopeError, match=r"libbpf\.so\.99 was not found: install"):
            libbpf.libbpf()
    finally:
        libbpf.libbpf.cache_clear()

    # THEN
    assert not findings["libbpf"].ok
    assert findings["libbpf"].needed
    assert "apt-get install libbpf1" in findings["libbpf"].remedy


def test_without_rights_nothing_of_the_kernel_is_called_good():
    # GIVEN a process of the user nobody
    code = (
        "from podscope.kernel import probes\n"
        "import os\n"
        "if os.geteuid() == 0:\n"
        "    os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for finding in probes.probe(): print(finding.ok, finding.remedy, finding.feature, sep='|')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    # WHEN
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    findings = [line.split("|") for line in done.stdout.splitlines()]

    # THEN
    failed = {feature: remedy for ok, remedy, feature in findings if ok == "False"}
    good = {feature for ok, _, feature in findings if ok == "True"}
    assert good <= {"kernel BTF", "libbpf", "cgroup v2"}
    assert failed.keys() >= {"rights", "cgroup packets", "ring buffer", "bpf_loop", "atomic fetch"}
    assert set(failed.values()) == {AS_ROOT}
    assert done.stderr == ""
