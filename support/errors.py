"""The project's error type, and what a program says of it."""

import difflib
import logging
import signal
import sys
from collections.abc import Callable, Iterable

LONGEST = 300  # characters of a message on the screen


class UserError(ValueError):
    """Something that the user gave is wrong: a flag, a file, a row.

    The message is one line. It says what is wrong, where (file:line or flag) and what to do about it. The
    command line prints it without a traceback and exits with status 2.
    """


def one_line(error: BaseException) -> str:
    """The message of an error on one line. Of an OSError what the system says, without the file's name."""
    message = getattr(error, "strerror", None) or str(error)
    return shown(message) or type(error).__name__


def shown(message: str) -> str:
    """The message on one line of at most 300 characters, without its middle where it is longer.

    Control characters are escaped: names and files of strangers may hold some that rewrite the screen.
    """
    printable = (c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.split()))
    line = "".join(printable)
    head = LONGEST * 2 // 3
    return line if len(line) <= LONGEST else f"{line[:head]} ... {line[head + 5 - LONGEST :]}"


class OneLine(logging.Formatter):
    """Log records as one line each, see `shown`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's message alone."""
        return shown(record.getMessage())


def did_you_mean(word: str, names: Iterable[str], dashes: str = "") -> str:
    """`; did you mean NAME?` with the name nearest to the word, or "". dashes: stand before the name."""
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.65)
    return f"; did you mean {dashes}{by_lower[near[0]]}?" if near else ""


def exit_status(name: str, program: Callable[[], int]) -> int:
    """Run a program. An error is one line on stderr, which starts with the program's name.

    Returns the exit status: the program's own, 2 for a user's mistake, 128 + its number for a signal (130
    for Ctrl-C). A KeyboardInterrupt may carry the number of another signal.
    """
    # a path or a text that the terminal's encoding lacks must not end a program
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return program()
    except UserError as error:
        message, status = f"error: {one_line(error)}", 2
    except OSError as error:
        message, status = f"error: {error.filename or 'input or output'}: {one_line(error)}", 2
    except KeyboardInterrupt as interruption:
        message, status = "interrupted", 128 + int(*interruption.args or (signal.SIGINT,))
    print(shown(f"{name}: {message}"), file=sys.stderr)
    return status
