# SPDX-License-Identifier: Apache-2.0
"""``podscope doctor``: what this kernel, these rights and this host allow."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from podscope.errors import PodscopeError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from podscope.kernel.probes import Finding

HELP = (
    "Try each feature of the kernel and each right that podscope uses. "
    "The exit code is 0 only if the main job can run."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "-o", "--output", choices=("table", "json"), default="table", help="form (default: table)"
    )


def run(args: argparse.Namespace) -> int:
    """Print all findings; 0 only if all that is needed is there."""
    from podscope.kernel.probes import probe

    findings = [*probe(), bpftrace()]
    lines = json_lines(findings) if args.output == "json" else table_lines(findings)
    print("\n".join(lines))
    return 1 if missing(findings) else 0


def bpftrace() -> Finding:
    """Whether ``podscope run`` finds its program here; in a cluster it is in the image."""
    from podscope.kernel.probes import Finding
    from podscope.trace.bpftrace import find

    try:
        found = find()
    except PodscopeError as error:
        what, _, remedy = str(error).partition(": ")
        return Finding("bpftrace", ok=False, needed=False, detail=what, remedy=remedy)
    version = ".".join(map(str, found.version))
    return Finding("bpftrace", ok=True, needed=False, detail=f"{version}, {found.path}", remedy="")


def missing(findings: Sequence[Finding]) -> list[str]:
    """Features without which the main job can't run."""
    return [finding.feature for finding in findings if finding.needed and not finding.ok]


def json_lines(findings: Sequence[Finding]) -> list[str]:
    """One object a feature."""
    return [json.dumps(asdict(finding), ensure_ascii=False) for finding in findings]


def table_lines(findings: Sequence[Finding]) -> list[str]:
    """One line a feature, one more for what to do, and the conclusion."""
    width = max((len(finding.feature) for finding in findings), default=0)
    lines = []
    told = ""
    for finding in findings:
        lines.append(f"{verdict(finding):<8} {finding.feature:<{width}}  {finding.detail}".rstrip())
        # Without rights everything has the same remedy: once is enough.
        if not finding.ok and finding.remedy and finding.remedy != told:
            lines.append(f"{'':<8} {'':<{width}}  to do: {finding.remedy}")
            told = finding.remedy
    names = ", ".join(missing(findings))
    conclusion = f"The main job can't run; it needs: {names}." if names else "The main job can run."
    return [*lines, "", conclusion]


def verdict(finding: Finding) -> str:
    """``ok``, ``missing`` where the main job needs it, else ``without``."""
    if finding.ok:
        return "ok"
    return "missing" if finding.needed else "without"
