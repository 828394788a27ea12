"""The one error a user's input can cause."""


class InputError(ValueError):
    """Input that cannot be used; its text is one line that says what was got and what is allowed.

    The command line prints it and exits with code 2. Nothing done before it is lost.
    """


class Terminated(Exception):  # noqa: N818 - not an error: somebody asked for it
    """SIGTERM came, and what was done is saved; the same command goes on from there."""
