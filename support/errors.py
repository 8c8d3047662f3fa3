"""The project's error type. It has a file of its own, so that every module can raise it without a circular
import."""


class UserError(ValueError):
    """Something that the user gave is wrong: a flag, a file, a row.

    The message is one line. It says what is wrong, where (file:line or flag) and what to do about it. The
    command line prints it without a traceback and exits with status 2.
    """


def one_line(error: BaseException) -> str:
    """The whole message of a library's error on one line; the name of its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__
