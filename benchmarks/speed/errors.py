"""The error that an option can cause."""


class UsageError(ValueError):
    """An option that cannot be used as it stands; the message names it, its value and the remedy."""
