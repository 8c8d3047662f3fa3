"""The project's one error type, in a file of its own so that every room can raise it without importing
upward."""


class UserError(ValueError):
    """Something the user gave is wrong: a flag, a file, a row.

    The message is one line: what is wrong, where (file:line or flag), and how to mend it.
    The command line prints it and exits with status 2; a traceback would only hide it.
    """


def first_line(error: BaseException) -> str:
    """What an error of a library says, as part of a one-line message; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: BaseException) -> str:
    """The whole message of a library's error on one line; the error's type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
