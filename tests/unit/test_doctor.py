# SPDX-License-Identifier: Apache-2.0
"""What ``podscope doctor`` says of findings, and of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from podscope.commands import doctor
from podscope.kernel.probes import Finding

GOOD = Finding("ring buffer", ok=True, needed=False, detail="works", remedy="")
WITHOUT = Finding("bpf_loop", ok=False, needed=False, detail="absent", remedy="Linux 5.17")
MISSING = Finding(
    "BTF", ok=False, needed=True, detail="no vmlinux", remedy="CONFIG_DEBUG_INFO_BTF=y"
)


def run_doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The real command on this machine."""
    return subprocess.run(
        [sys.executable, "-m", "podscope", "doctor", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_only_a_needed_feature_that_fails_stops_the_main_job():
    assert doctor.missing([GOOD, WITHOUT]) == []
    assert doctor.missing([GOOD, WITHOUT, MISSING]) == ["BTF"]


def test_table_says_what_to_do_for_each_feature_that_is_not_there():
    # GIVEN / WHEN
    lines = doctor.table_lines([GOOD, WITHOUT, MISSING])

    # THEN
    assert [line.split() for line in lines] == [
        ["ok", "ring", "buffer", "works"],
        ["without", "bpf_loop", "absent"],
        ["to", "do:", "Linux", "5.17"],
        ["missing", "BTF", "no", "vmlinux"],
        ["to", "do:", "CONFIG_DEBUG_INFO_BTF=y"],
        [],
        ["The", "main", "job", "can't", "run;", "it", "needs:", "BTF."],
    ]


@pytest.mark.parametrize("findings", [[GOOD], [GOOD, WITHOUT], [MISSING]])
def test_json_has_one_object_a_feature(findings):
    # GIVEN / WHEN
    objects = [json.loads(line) for line in doctor.json_lines(findings)]

    # THEN
    assert [Finding(**item) for item in objects] == findings


def test_exit_code_agrees_with_the_findings_of_this_machine():
    # GIVEN / WHEN
    done = run_doctor("-o", "json")

    # THEN
    findings = [Finding(**json.loads(line)) for line in done.stdout.splitlines()]
    assert findings
    assert done.returncode == (1 if doctor.missing(findings) else 0)
    assert done.stderr == ""


def test_every_feature_that_is_not_there_has_a_remedy():
    # GIVEN / WHEN
    done = run_doctor("-o", "json")

    # THEN
    for line in done.stdout.splitlines():
        finding = Finding(**json.loads(line))
        assert finding.detail
        assert finding.ok or finding.remedy, finding.feature


def test_without_rights_the_doctor_still_answers():
    # GIVEN a process without capabilities, whoever runs the tests
    stripped = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []

    # WHEN
    done = subprocess.run(
        [*stripped, sys.executable, "-m", "podscope", "doctor"],
        capture_output=True,
        text=True,
        check=False,
    )

    # THEN
    assert done.stderr == ""
    assert done.returncode == 1
    assert done.stdout.startswith("missing  rights")


def test_bpftrace_is_found_or_said_how_to_get_it(monkeypatch, tmp_path):
    # GIVEN
    program = tmp_path / "bpftrace"
    program.write_text("#!/bin/sh\necho bpftrace v0.23.2\n")
    program.chmod(0o755)

    # WHEN / THEN
    monkeypatch.setenv("PODSCOPE_BPFTRACE", str(program))
    assert doctor.bpftrace() == Finding("bpftrace", True, False, f"0.23, {program}", "")
    monkeypatch.delenv("PODSCOPE_BPFTRACE")
    monkeypatch.setenv("PATH", "")
    found = doctor.bpftrace()
    assert (found.ok, found.detail) == (False, "bpftrace is not installed")
    assert "apt install bpftrace" in found.remedy
