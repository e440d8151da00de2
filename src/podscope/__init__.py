# SPDX-License-Identifier: Apache-2.0
"""See every HTTP conversation of a Linux host from the kernel.

``podscope.watch()`` gives batches of NumPy arrays; the ``podscope`` command shows them.
"""

from __future__ import annotations

# Not from typing: that is half of the time which the import takes.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from podscope.pipeline import watch
    from podscope.tracing import trace

__version__ = "0.1.0"

__all__ = ["__version__", "trace", "watch"]


def run_trace(*arguments: Any, **options: Any) -> Any:
    """What ``podscope.trace(...)`` does, whose name is a package's, too."""
    from podscope.tracing import trace

    return trace(*arguments, **options)


def __getattr__(name: str) -> Any:
    """Import what is asked for when it first is: NumPy stays out of ``podscope --help``."""
    if name == "watch":
        from podscope.pipeline import watch

        return watch
    if name == "trace":
        # A package of that name, which can be called.
        import podscope.trace

        return podscope.trace
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
