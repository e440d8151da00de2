# SPDX-License-Identifier: Apache-2.0
"""What a tracer is started in: file systems of its own, and an end with ours."""

from __future__ import annotations

import shutil


def surroundings(filesystem: str = "", place: str = "") -> list[str]:
    """Commands that change what the next one sees, and become it.

    Args:
        filesystem: one to be mounted, as ``tracefs``; for this process only, so nothing stays.
        place: where.
    """
    before = []
    if filesystem and shutil.which("unshare"):
        mount = f'mount -t {filesystem} {filesystem} {place}; exec "$@"'
        before += ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh"]
    if shutil.which("setpriv"):
        before += ["setpriv", "--pdeathsig", "KILL"]
    return before
