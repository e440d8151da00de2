# SPDX-License-Identifier: Apache-2.0
"""What a refusal of the API server means, for people."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from podscope.errors import PodscopeError
from podscope.identity.kubernetes_client import KubernetesError

_UNAUTHORIZED, _FORBIDDEN = 401, 403
# forbiddenMessage() in k8s.io/apiserver/pkg/endpoints/handlers/responsewriters.
_REFUSED = re.compile(
    r'cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]+)")?'
)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """A refusal of the API server as one line that says what to do."""
    try:
        yield
    except KubernetesError as error:
        if error.status == _UNAUTHORIZED:
            raise PodscopeError(
                f"{error}: the API server does not know you; renew the kubeconfig's credentials, "
                "or choose another --context"
            ) from None
        if error.status != _FORBIDDEN:
            raise
        raise PodscopeError(permission(str(error))) from None


def permission(message: str) -> str:
    """One line that names the right which is missing."""
    found = _REFUSED.search(message)
    if found is None:
        return f"no permission: {message}"
    resource = ".".join(part for part in found.group("resource", "group") if part)
    where = f" in namespace {found['namespace']!r}" if found["namespace"] else ""
    return (
        f"no permission: '{found['verb']}' on '{resource}'{where} is missing; ask the cluster's "
        "administrator for it, or choose another --context"
    )
