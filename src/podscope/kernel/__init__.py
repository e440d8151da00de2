# SPDX-License-Identifier: Apache-2.0
"""The kernel, by libbpf: objects, maps, rings, BTF and feature probes. Knows no protocol."""
