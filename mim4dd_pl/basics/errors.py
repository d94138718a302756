"""What the user can mend: errors that end the program with one line instead of a traceback.

Each carries its exit code. Anything else that is raised is our fault and keeps its traceback.
"""


class UserError(Exception):
    """A wrong setting: exit code 2. The message says what was expected, what came and what to do."""

    exit_code = 2


class DataError(UserError):
    """A data set that is missing, incomplete or not what the recipe asks for: exit code 3."""

    exit_code = 3


class StoredFileError(UserError):
    """A checkpoint, trajectory or artefact that is missing, damaged or does not fit: exit code 4."""

    exit_code = 4


class Stopped(BaseException):
    """The program was asked to stop by signal ``number``; no Exception, so that nothing catches it on its way."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class DivergenceError(UserError):
    """The optimisation left the finite numbers: exit code 1."""

    exit_code = 1


def check_positive(**settings: int | None) -> None:
    """Refuse settings below 1; None is none.

    Raises:
        ValueError: Names the setting.
    """
    for name, value in settings.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


def first_line(error: BaseException) -> str:
    """What an error says, without what it adds."""
    return str(error).strip().split("\n")[0]
