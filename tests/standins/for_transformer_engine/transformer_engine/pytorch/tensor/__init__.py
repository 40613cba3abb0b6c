"""See the package."""


class QuantizedTensor:
    """What no parameter here is."""
