# SPDX-License-Identifier: Apache-2.0
"""Identity: from a socket's cgroup and process to the names that people use."""
