"""The service of `fer-serve`: HTTP around a recognizer. Needs the extra `serve`; private but for what is named here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fer_runtime.server.app import create_app as create_app
    from fer_runtime.server.app import open_recognition as open_recognition
    from fer_runtime.server.run import run_server as run_server
    from fer_runtime.server.settings import ServerSettings as ServerSettings

# Loaded on first use: `fer-serve --help` needs none of the extra's packages.
_MODULES = {
    "ServerSettings": "fer_runtime.server.settings",
    "create_app": "fer_runtime.server.app",
    "open_recognition": "fer_runtime.server.app",
    "run_server": "fer_runtime.server.run",
}
__all__ = ["ServerSettings", "create_app", "open_recognition", "run_server"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
