# SPDX-License-Identifier: Apache-2.0
"""The ``podscope`` program: finds the command, runs it, turns errors into one line.

Exit codes: 0 done, 1 it could not be done, 2 wrong usage, 130 ended by Ctrl-C before it began,
143 ended by SIGTERM before it began.
"""

from __future__ import annotations

try:
    import argparse
    import errno
    import io
    import os
    import signal
    import sys
    import warnings
    from typing import TYPE_CHECKING
    from typing import Any
    from typing import NoReturn
    from typing import cast

    from podscope import __version__
    from podscope.commands import ALIASES
    from podscope.commands import COMMANDS
    from podscope.errors import PodscopeError
except KeyboardInterrupt:  # before `main`, which has its own way to end
    raise SystemExit(130) from None

if TYPE_CHECKING:
    from collections.abc import Sequence

    from podscope.commands import Command
    from podscope.commands import CommandModule

DESCRIPTION = "See every HTTP conversation of this machine from the kernel."
EPILOG = "'podscope COMMAND --help' tells the flags of a command. Watching needs root."

# What the extra "kubernetes" installs.
CLUSTER_MODULES = ("httpx", "jsonpatch", "lightkube", "websockets")


class Parser(argparse.ArgumentParser):
    """argparse, with one line for a mistake and the nearest flag or command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see '{self.prog} --help'\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        # Newer versions of argparse say nothing when the text cannot be written.
        (file or sys.stderr).write(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    open_streams()
    warnings.showwarning = show_warning
    try:
        try:
            return run(given)
        finally:
            sys.stdout.flush()  # here, where a full disk can still be told
    except PodscopeError as error:
        print(f"podscope: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if error.name not in CLUSTER_MODULES:
            raise
        print(
            f"podscope: clusters need {error.name}: pip install 'podscope[kubernetes]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader (head, less) has gone. Python flushes stdout at exit: let it go nowhere.
        silence()
        return 0
    except OSError as error:
        silence()
        print(f"podscope: {why_not(error)}", file=sys.stderr)
        return 1


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning of the library as a line of the program, without Python's file and line."""
    print(f"podscope: warning: {message}", file=sys.stderr)


def why_not(error: OSError) -> str:
    """One line for an error of the system that no command expected."""
    said = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return f"cannot write the output: {said}"
    return f"{error.filename}: {said}" if error.filename else said


def open_streams() -> None:
    """Give programs that were started without stdout or stderr (``>&-``) a place to write to."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(getattr(sys.stdout, "buffer", None), io.RawIOBase):
        # Unbuffered (python -u): what is left of a write that a signal cuts would be dropped.
        sys.stdout = open(  # noqa: SIM115
            sys.stdout.fileno(),
            "w",
            buffering=1,
            encoding=sys.stdout.encoding,
            errors=sys.stdout.errors,
            closefd=False,
        )


def silence() -> None:
    """Let stdout go nowhere: Python writes what is left of it at exit, and would fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def run(given: Sequence[str]) -> int:
    """Parse ``given`` and run the command it names; raises PodscopeError."""
    parser = Parser(
        prog="podscope",
        description=DESCRIPTION,
        epilog=epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="podscope [--help] [--version] COMMAND ...",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"podscope {__version__}")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    bad = next((word for word in given if not is_text(word)), None)
    if bad is not None:
        parser.error(f"argument {bad!r} is not UTF-8")
    # The command is the first word; everything after it is the command's own.
    chosen = parser.parse_args(given)
    if chosen.command is None:
        parser.print_help()
        return 0
    command = find(chosen.command)
    if command is None:
        parser.error(f"unknown command {chosen.command!r}{nearest_command(chosen.command)}")
    module = load(command)
    own = command_parser(command, module)
    values, unknown = own.parse_known_intermixed_args(joined(chosen.rest))
    if unknown:
        own.error(f"unknown argument {unknown[0]!r}{nearest_flag(unknown[0], own)}")
    code = module.run(values)
    # A broken pipe shows here, where it can be told, and not at the interpreter's end.
    sys.stdout.flush()
    return code


def joined(words: Sequence[str]) -> list[str]:
    """``--slower -1s`` as ``--slower=-1s``: argparse would take the value for a flag."""
    made: list[str] = []
    for word in words:
        value = word[:1] == "-" and word[1:2].isdigit()
        if value and made and made[-1][:2] == "--" and "=" not in made[-1] and made[-1] != "--":
            made[-1] += f"={word}"
        else:
            made.append(word)
    return made


def is_text(word: str) -> bool:
    """Whether an argument was UTF-8; bytes that are not arrive as lone surrogates (PEP 383)."""
    return not any("\ud800" <= character <= "\udfff" for character in word)


def epilog() -> str:
    """The table of commands, from their static list: no command is imported for it."""
    lines = [f"  {command.name:<10} {command.help}" for command in COMMANDS]
    return "\n".join(["commands:", *lines, "", EPILOG])


def find(name: str) -> Command | None:
    """The command of this name."""
    name = ALIASES.get(name, name)
    return next((command for command in COMMANDS if command.name == name), None)


def load(command: Command) -> CommandModule:
    """Import the command's module."""
    # importlib.import_module would do; __import__ saves the import of importlib.
    __import__(command.module)
    return cast("CommandModule", sys.modules[command.module])


def command_parser(command: Command, module: CommandModule) -> argparse.ArgumentParser:
    """The command's own parser."""
    parser = Parser(
        prog=f"podscope {command.name}",
        description=module.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser


def nearest_command(name: str) -> str:
    """`` (did you mean 'http'?)``, or nothing."""
    return nearest(name, [command.name for command in COMMANDS])


def nearest_flag(flag: str, parser: argparse.ArgumentParser) -> str:
    """`` (did you mean '--interval'?)``, or nothing."""
    flags = [text for action in parser._actions for text in action.option_strings]
    return nearest(flag.partition("=")[0], flags)


def nearest(word: str, words: Sequence[str]) -> str:
    """A question with the most similar of ``words``, empty if none is near."""
    from difflib import get_close_matches

    found = get_close_matches(word, words, n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


if __name__ == "__main__":
    sys.exit(main())
