"""The project's error type, and what a program says of it."""

import signal
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something that the user gave is wrong: a flag, a file, a row.

    The message is one line. It says what is wrong, where (file:line or flag) and what to do about it. The
    command line prints it without a traceback and exits with status 2.
    """


def one_line(error: BaseException) -> str:
    """The message of an error on one line. Of an OSError what the system says, without the file's name."""
    message = getattr(error, "strerror", None) or str(error)
    return " ".join(message.split()) or type(error).__name__


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
    print(f"{name}: {message}", file=sys.stderr)
    return status
