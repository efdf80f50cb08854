"""The one exception that means: the user can mend this."""


class InputError(ValueError):
    """Bad input: one line that names the culprit (file or key) and the remedy.

    Commands turn it into that line on standard error and exit code 2, without a traceback.
    """
