# SPDX-License-Identifier: Apache-2.0
"""Sources: each reads one set of kernel programs and knows nothing of who owns what."""
