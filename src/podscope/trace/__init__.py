# SPDX-License-Identifier: Apache-2.0
"""bpftrace programs: parsed, confined to a target, run, and their answers merged.

``podscope.trace(program, target)`` runs one: the module is what it is called by, too.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """This module: ``podscope.trace`` is its name, and that of the function."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """See ``podscope.tracing.trace``."""
        from podscope import run_trace

        return run_trace(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
