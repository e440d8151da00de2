# SPDX-License-Identifier: Apache-2.0
"""Where batches go: one module a sink."""
