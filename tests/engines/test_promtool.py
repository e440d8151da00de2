# SPDX-License-Identifier: Apache-2.0
"""The exposition as Prometheus' own tools read it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from podscope.deploy import manifests
from podscope.sinks import prometheus

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import records


def totals() -> prometheus.Totals:
    """Totals of a little traffic, with an overflow, losses and costs."""
    made = prometheus.Totals(series=4)
    made.add(records.shop_batch())
    made.tell(
        {"joined": 3, "ring_full": 0},
        {"cpu_seconds": 1.5, "resident_bytes": 2e7, "kernel_runs": 10**7, "kernel_seconds": 0.25},
        {"tcp": True},
    )
    return made


def test_promtool_finds_nothing_to_complain_about():
    # GIVEN
    promtool = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool: install it (Prometheus' release, or Debian's package "
                    "prometheus), or set PROMTOOL to its path")  # fmt: skip
    text = b"".join(totals().expose(openmetrics=False))

    # WHEN
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )

    # THEN
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_openmetrics_parser_reads_all_with_types_and_units():
    # GIVEN
    text = b"".join(totals().expose(openmetrics=True)).decode()

    # WHEN
    families = {family.name: family for family in text_string_to_metric_families(text)}

    # THEN
    assert {name: (family.type, family.unit) for name, family in families.items()} == {
        "http_server_request_duration_seconds": ("histogram", "seconds"),
        "http_client_request_duration_seconds": ("histogram", "seconds"),
        "podscope_http_server_request_body_bytes": ("counter", "bytes"),
        "podscope_http_server_response_body_bytes": ("counter", "bytes"),
        "podscope_http_client_request_body_bytes": ("counter", "bytes"),
        "podscope_http_client_response_body_bytes": ("counter", "bytes"),
        "podscope_lost": ("counter", ""),
        "podscope_agent_cpu_seconds": ("counter", "seconds"),
        "podscope_agent_resident_memory_bytes": ("gauge", "bytes"),
        "podscope_agent_kernel_runs": ("counter", ""),
        "podscope_agent_kernel_seconds": ("counter", "seconds"),
        "podscope_agent_series": ("gauge", ""),
        "podscope_agent_source_up": ("gauge", ""),
    }
    assert all(family.documentation for family in families.values())


def test_promtool_takes_the_configuration_of_the_stacks_prometheus(tmp_path):
    # GIVEN
    promtool = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool: install it, or set PROMTOOL to its path")
    made = manifests.objects("watch", servers="prometheus")
    (config,) = (one for one in made if one["metadata"]["name"] == "podscope-prometheus"
                 and one["kind"] == "ConfigMap")  # fmt: skip
    file = tmp_path / "prometheus.yml"
    file.write_text(config["data"]["prometheus.yml"])

    # WHEN
    done = subprocess.run(
        [promtool, "check", "config", "--syntax-only", str(file)],
        capture_output=True,
        check=False,
        text=True,
    )

    # THEN
    assert done.returncode == 0, done.stderr
