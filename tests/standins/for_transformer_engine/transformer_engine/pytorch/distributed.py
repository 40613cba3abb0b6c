"""See the package."""


class CudaRNGStatesTracker:
    """Imported as a base class, never made."""


def activation_recompute_forward(*args, **kwargs):
    """Imported, never called: quantised layers are recomputed with it."""
    raise NotImplementedError
