# SPDX-License-Identifier: Apache-2.0
"""Dashboards, and what log shippers need, made from the names that the sinks write."""
