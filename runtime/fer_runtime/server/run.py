"""Run the service: open a socket, start uvicorn, and finish the requests in progress before the end."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from fer_runtime.errors import ServeError
from fer_runtime.server.app import Application, create_app, open_recognition
from fer_runtime.server.connections import limited_protocol
from fer_runtime.server.live import LiveView
from fer_runtime.server.logs import log, take_library_logs
from fer_runtime.server.settings import ServerSettings
from fer_runtime.server.watch import FolderWatch

_BACKLOG = 256


class _Server(uvicorn.Server):
    live: LiveView | None = None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Requests are finished; a live view never would be."""
        if self.live is not None:
            self.live.end()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the service, which is its normal end: they are not raised again."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_server(settings: ServerSettings) -> None:
    """Serve until SIGTERM or Ctrl-C; then finish the requests in progress.

    Raises:
        FerError: a model is missing or fails its self-test, or the address cannot be used.
    """
    listener = _listen(settings)
    with listener:
        take_library_logs()
        recognition = open_recognition(settings)
        tasks, live = [], None
        try:
            if settings.watch is not None:
                watch = FolderWatch(settings.watch, recognition)
                for model in watch.open_all():
                    recognition.models.put(model)
                tasks.append(watch.run)
            if settings.live is not None:
                live = LiveView(settings.live, settings.live_name, recognition)
            server = _Server(_config(create_app(recognition, live=live, tasks=tasks), settings))
            server.live = live
            recognition.metrics.connections.set_function(lambda: len(server.server_state.connections))
            port = listener.getsockname()[1]
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            models = [
                f"{model.name} {model.metadata.precision} {model.recognizer.provider}" for model in recognition.models
            ]
            url, has_token = f"http://{host}:{port}", settings.token is not None
            # Who reads that the service listens may stop it at once.
            with server.capture_signals():
                log("listening", url=url, models=models, token=has_token, live=live is not None)
                server.run(sockets=[listener])
        finally:
            if live is not None:
                live.join()
            has_ended = recognition.close(settings.timeout)
    if not has_ended:
        # The interpreter would wait for the threads without end.
        log("stopped", level="error", reason="an image or a batch is still being computed")
        os._exit(1)
    log("stopped")


def _config(app: Application, settings: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=limited_protocol(settings.timeout, app.express),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.timeout)),
    )


def _listen(settings: ServerSettings) -> socket.socket:
    """A listening socket, before the models are loaded: an address that is taken is known at once.

    Raises:
        ServeError: the address cannot be used.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if hasattr(socket, "SO_REUSEADDR"):
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except UnicodeError as error:  # no name of a machine
        raise ServeError(f"cannot listen on {settings.host!r}: not a valid name; choose another --host") from error
    except OSError as error:
        is_host = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        raise ServeError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}; choose another "
            f"{'--host' if is_host else '--port'}"
        ) from error
    listener.setblocking(False)
    return listener
