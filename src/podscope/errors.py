# SPDX-License-Identifier: Apache-2.0
"""Errors that a user sees: one line each, with the exit code of the command."""


class PodscopeError(Exception):
    """Something could not be done. The message says what, where, and what to do."""

    exit_code = 1


class UsageError(PodscopeError):
    """The command line or a setting is wrong."""

    exit_code = 2
