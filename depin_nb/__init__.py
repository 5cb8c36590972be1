"""depin-nb: an ordinary PyTorch training cell on a Dask cluster of edge devices or cloud workers, with loss, money and tokens live."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["attach", "connect", "load_ipython_extension"]


def connect(backend: str = "local", workers: int | None = None, **options: Any) -> Any:
    """A Session on this machine's hub, started if need be. See `depin_nb.session.Session`."""
    from .wiring import connect

    return connect(backend, workers, **options)


def attach(run_id: str) -> Any:
    """A finished, interrupted or still running run from the journal: its metrics and weights."""
    from .wiring import attach

    return attach(run_id)


def load_ipython_extension(ip: Any) -> None:
    """`%load_ext depin_nb`: adds %depin, %%depin and their completion."""
    from .jupyter.magic import load

    load(ip)


def unload_ipython_extension(ip: Any) -> None:
    """`%unload_ext depin_nb`."""
    from .jupyter.magic import unload

    unload(ip)
