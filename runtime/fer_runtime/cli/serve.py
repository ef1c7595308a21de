"""The command `fer-serve`: its options, and the service that they ask for."""

from __future__ import annotations

import os
from typing import Any

import click

from fer_runtime.command import FerCommand, NumberRange, PathlibPath, Rule, option_group
from fer_runtime.extras import needs_extra
from fer_runtime.model.find import PRECISIONS
from fer_runtime.shared_options import (
    face_detection_options,
    max_pixels_option,
    model_option,
    models_dir_option,
    named_models_rule,
    provider_option,
    threads_option,
)
from fer_runtime.system import MAX_THREADS, available_cpus
from fer_runtime.video import LAST_CAMERA
from fer_runtime.video.addresses import is_stream, stream_name

_LEAST_TOKEN = 16  # characters


def _token(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and (len(value) < _LEAST_TOKEN or not value.isascii() or not value.isprintable()):
        raise click.BadParameter(
            f"a token has at least {_LEAST_TOKEN} printable ASCII characters, as from: openssl rand -hex 16",
            context,
            parameter,
        )
    return value


def _live_source(given: dict[str, Any]) -> tuple[int | str | None, str]:
    """The camera's number or the stream's address, and its name on the page."""
    if given["camera"] is not None and given["stream"] is not None:
        raise click.UsageError("/live shows one source: give --camera or --stream")
    if given["stream"] is not None:
        if not is_stream(given["stream"]):
            raise click.UsageError("--stream takes an address that begins with rtsp://, http://, https:// or udp://")
        with needs_extra("stream"):
            import av  # noqa: F401  # known before the first viewer
        return given["stream"], given["name"] or stream_name(given["stream"])
    return given["camera"], given["name"] or f"camera {given['camera']}"


_RULES = (
    named_models_rule("models", "precision", "models_dir"),
    Rule(
        *("precision", "models_dir"),
        when=lambda given: given["watch"] is not None and not given["models"],
        because="only with the name of a model; --watch serves the files of its folder",
    ),
    Rule(
        "name",
        when=lambda given: given["camera"] is None and given["stream"] is None,
        because="only with --camera or --stream",
    ),
    Rule("insecure", when=lambda given: given["token"] is not None, because="not with --token, which protects it"),
)


@click.command("fer-serve", cls=FerCommand, rules=_RULES)
@option_group(
    "Model",
    model_option("models", multiple=True, more="Repeat it to serve several. "),
    click.option("--precision", type=click.Choice(PRECISIONS), help="Precision of the named models."),
    click.option(
        "--watch",
        type=PathlibPath(exists=True, file_okay=False),
        metavar="DIR",
        help="Serve the models of DIR, and new files as they arrive. A new file replaces the old one after its "
        "self-test has passed.",
    ),
    models_dir_option,
    provider_option(),
    threads_option("one batch", most=MAX_THREADS),
)
@face_detection_options
@option_group(
    "Live page",
    click.option(
        "--camera",
        type=click.IntRange(0, LAST_CAMERA),
        metavar="N",
        help="Show camera N, with its faces drawn in, at /live.",
    ),
    click.option(
        "--stream",
        metavar="ADDRESS",
        help="Show a stream (rtsp, http, https or udp) at /live. Needs the extra `stream`.",
    ),
    click.option("--name", help="Name of the camera or stream on the page. [default: camera N, or the stream's host]"),
)
@option_group(
    "Address",
    click.option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        help="Address to listen on. Any but the loopback address needs --token or --insecure.",
    ),
    click.option(
        "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 takes any free one."
    ),
    click.option(
        "--token",
        envvar="FER_SERVE_TOKEN",
        callback=_token,
        help="Requests must send it: Authorization: Bearer TOKEN. Set FER_SERVE_TOKEN instead to keep it out of the "
        "process list.",
    ),
    click.option("--insecure", is_flag=True, help="Let anyone who can reach --host use the service."),
)
@option_group(
    "Limits",
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="Images decoded, and batches computed, in parallel. [default: the CPUs]",
    ),
    click.option(
        "--max-body",
        type=click.IntRange(min=1),
        default=32,
        show_default=True,
        metavar="MB",
        help="Largest request, in units of 1,048,576 bytes.",
    ),
    max_pixels_option(50_000_000),
    click.option(
        "--max-requests",
        type=click.IntRange(min=1),
        default=256,
        show_default=True,
        help="Requests in progress; further ones get status 503.",
    ),
    click.option(
        "--timeout",
        type=NumberRange(0.1, 86_400),
        default=30.0,
        show_default=True,
        help="Seconds that a request may take.",
    ),
    click.option(
        "--batch-wait",
        type=NumberRange(0, 60_000),
        default=2.0,
        show_default=True,
        metavar="MS",
        help="Milliseconds that faces wait for those of other requests. A lone request never waits.",
    ),
)
def main(**given: Any) -> None:
    """Serve models over HTTP: images in, expressions out.

    \b
    fer-serve
    curl -F image=@photo.jpg localhost:8000/v1/images     faces and their expressions
    curl localhost:8000/health/ready                      the self-test of the served model
    fer-serve --camera 0                                  a page with the camera: localhost:8000/live

    A model is served only after its self-test has passed on this machine. Images are decoded in
    separate processes, and nothing is written to disk. The log on stderr has a JSON object per line,
    without images, file names or addresses. Exit codes: 0 if stopped by SIGTERM or Ctrl-C with all
    requests finished, 1 if it cannot start or a computation does not end, 2 for wrong usage.
    """
    if given["host"] not in ("127.0.0.1", "localhost", "::1") and given["token"] is None and not given["insecure"]:
        raise click.UsageError(
            f"--host {given['host']} opens the service to other machines; protect it with --token, or say --insecure"
        )
    live, live_name = _live_source(given)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with needs_extra("serve"):
        from fer_runtime.server import ServerSettings, run_server
    from fer_runtime.model.session import silence

    silence()
    run_server(
        ServerSettings(
            models=given["models"],
            precision=given["precision"],
            models_dir=given["models_dir"],
            watch=given["watch"],
            live=live,
            live_name=live_name,
            detector=given["detector"],
            yunet=given["yunet"],
            min_face=given["min_face"],
            min_confidence=given["min_confidence"],
            provider=given["provider"],
            threads=given["threads"],
            workers=given["workers"] or available_cpus(),
            host=given["host"],
            port=given["port"],
            token=given["token"],
            max_body=given["max_body"] << 20,
            max_pixels=given["max_pixels"],
            max_requests=given["max_requests"],
            timeout=given["timeout"],
            batch_wait=given["batch_wait"] / 1000,
        )
    )
