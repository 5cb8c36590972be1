"""Jupyter server extension: the hub's status API behind Jupyter's own login, for the sidebar, the status bar and the panel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp

__all__ = ["_jupyter_server_extension_points", "_load_jupyter_server_extension"]


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "depin_nb.server"}]


def _load_jupyter_server_extension(server_app: ServerApp) -> None:
    from ..core.config import hub_file
    from .handlers import routes
    from .link import HubLink

    web_app: Any = server_app.web_app  # tornado leaves it untyped
    link = HubLink(hub_file, log=server_app.log)
    web_app.add_handlers(".*$", routes(web_app.settings["base_url"], link))
    server_app.log.info("depin_nb.server serves depin-nb/api/")
