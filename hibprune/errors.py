"""Faults that are the user's to mend: one plain line, no traceback."""


class UserError(Exception):
    """A bad recipe, data set, model or machine: the place, the fault and the remedy in one line.

    The command line prints it and exits with code 2.
    """
