# SPDX-License-Identifier: Apache-2.0
"""``podscope.trace()``: a bpftrace program on this host, or on the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from podscope.errors import UsageError
from podscope.trace import session
from podscope.trace.host_targets import is_on_host
from podscope.trace.session import DEADLINE_SECONDS
from podscope.trace.session import INTERVAL_SECONDS
from podscope.trace.session import Terms

if TYPE_CHECKING:
    from podscope.cluster_traces import ClusterTrace
    from podscope.trace.session import Trace


def trace(
    program: str,
    target: str = "",
    *,
    interval: float = INTERVAL_SECONDS,
    deadline: float = DEADLINE_SECONDS,
    arguments: Sequence[str] = (),
    confine: bool = True,
    unsafe: bool = False,
    by: str = "",
    namespace: str = "",
    selector: str = "",
    container: str = "",
    all_nodes: bool = False,
    way: str = "auto",
    context: str = "",
    kubeconfig: str = "",
) -> Trace | ClusterTrace:
    """Run a bpftrace program on this host, or on the nodes of a cluster.

    A cluster is meant where a target is one of its objects, or one of the options from
    ``namespace`` on is given.

    Args:
        program: its text.
        target: on this host ``unit/NAME``, ``container/ID``, ``pod/UID`` or ``pid/N``; in a cluster
            ``deploy/X``, ``pod/X``, ``node/X`` and so on. Several with blanks between them; empty:
            the whole host, or all pods of the namespace.
        interval: seconds between two answers.
        deadline: seconds after which it is ended.
        arguments: ``$1`` and on.
        confine: let the program see the target alone; else it only gives ``$container_pid``.
        unsafe: allow ``system()`` and its like.
        by: in a cluster: keep maps apart by ``node`` or ``pod``.
        namespace: of the target and of the trace; empty: that of the context.
        selector: pods with these labels.
        container: only containers of this name.
        all_nodes: all nodes, each as a whole.
        way: ``jobs``, ``agents``, or ``auto``: by agents where it can be.
        context: of the kubeconfig; empty: the current one.
        kubeconfig: a file; empty: as kubectl finds it.

    Returns:
        The running program: iterate over it inside of a ``with``.

    Raises:
        UsageError: no program, or no such target.
        PodscopeError: it cannot be run.
    """
    words = target.split()
    terms = Terms(interval, deadline, tuple(arguments), confine, unsafe)
    of_cluster = (namespace, selector, container, all_nodes, context, kubeconfig)
    if not any(of_cluster) and all(map(is_on_host, words)):
        if by:
            raise UsageError(f"by={by!r}: only in a cluster")
        return session.begin(program, words, terms)
    # What knows clusters takes time to load.
    from podscope import cluster_traces

    where = cluster_traces.Where(
        target, namespace, selector, container, all_nodes, context, kubeconfig
    )
    return cluster_traces.begin(program, where, terms, by=by, way=way)
