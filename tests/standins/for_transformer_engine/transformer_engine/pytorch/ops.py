"""See the package."""


class Sequential:
    """Named in annotations."""


class FusibleOperation:
    """Named in annotations."""
