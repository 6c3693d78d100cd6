"""TODO: foleybox.errors."""

INSTALL_LAB = "in a checkout of foleybox, pip install -c constraints.txt '.[lab]'"


class UserError(ValueError):
    """A mistake the user can mend: one line with what was found, what was expected and what to do.

    The command line prints it without a traceback and exits with 2; in Python it is a `ValueError`.
    """
