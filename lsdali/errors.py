"""What a user is meant to read when something is wrong."""


class UserError(Exception):
    """Bad input. The message is one clear sentence that names the thing and says what would be right.

    The entry points print the message alone, without a traceback, and exit with status 2.
    """


class SharedError(UserError):
    """The same on every rank, so that rank 0 alone prints it."""


def first_line(fault: BaseException) -> str:
    """What somebody else's exception says, in one line; its class where it says nothing."""
    return next(iter(str(fault).splitlines()), type(fault).__name__)
