"""The errors that the command line ends with: a user's input, and what no one can go on from."""


class InputError(ValueError):
    """Input that cannot be used; its text is one line that says what was got and what is allowed.

    The command line prints it and exits with code 2. Nothing done before it is lost.
    """


class ScoringError(RuntimeError):
    """A subnet cannot be scored, whoever tries; what was scored is kept."""


class ExportError(RuntimeError):
    """What was exported does not compute what the student computes; nothing of it is left."""


class Terminated(Exception):  # noqa: N818 - not an error: somebody asked for it
    """SIGTERM came, and what was done is saved; the same command goes on from there."""
