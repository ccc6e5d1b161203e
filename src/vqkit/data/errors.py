"""What can be wrong with a person's data, as one line that says how to mend it."""


class DataError(ValueError):
    """Data that cannot be used; the message is one line: the path, the value, the constraint, the fix."""


class NoSuchPath(DataError, FileNotFoundError):
    """The path that was given does not exist: a slip in the command rather than a fault of the data."""


def one_line(error: Exception) -> str:
    """What another library's exception says, for a place inside a `DataError`."""
    return " ".join(str(error).split()) or type(error).__name__
