# SPDX-License-Identifier: Apache-2.0
"""bpftrace programs: parsed, confined to a target, run, and their answers merged."""
