"""See the package."""


class DelayedScaling:
    """Imported as a base class, never made."""
