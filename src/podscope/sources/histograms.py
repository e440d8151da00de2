# SPDX-License-Identifier: Apache-2.0
"""Histograms of series in a hash map, put together from the pieces of bpf/common/chunks.h."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from podscope.errors import PodscopeError

Array = npt.NDArray[Any]


def buckets_of(keys: Array, chunk_keys: Array, chunks: Array) -> npt.NDArray[np.uint32]:
    """The exponential histogram of each series.

    Args:
        keys: of the series, shape (n,), each once; their member ``chunk`` is 0.
        chunk_keys: the same with numbers of pieces in ``chunk``, shape (m,).
        chunks: ``struct chunk``, shape (m,).

    Returns:
        Counts, shape (n, 256); ``red.quantiles`` says which bucket is which.

    Raises:
        PodscopeError: a piece of no series; the kernel programs make none.
    """
    width = chunks["n"].shape[1]
    found = np.zeros((len(keys), _BUCKETS // width, width), np.uint32)
    if not len(chunks):
        return found.reshape(len(keys), _BUCKETS)
    series = chunk_keys.copy()
    series["chunk"] = 0
    known, places = np.unique(np.concatenate([_raw(keys), _raw(series)]), return_inverse=True)
    if len(known) > len(keys):
        raise PodscopeError("a histogram of no series: the kernel programs have a bug")
    row_of = np.empty(len(known), np.intp)
    row_of[places[: len(keys)]] = np.arange(len(keys))
    found[row_of[places[len(keys) :]], chunk_keys["chunk"]] = chunks["n"]
    return found.reshape(len(keys), _BUCKETS)


_BUCKETS = 256


def _raw(keys: Array) -> Array:
    """Keys as bytes that can be compared, padding too: the kernel compares it as well."""
    return np.ascontiguousarray(keys).view(f"V{keys.dtype.itemsize}").reshape(-1)
