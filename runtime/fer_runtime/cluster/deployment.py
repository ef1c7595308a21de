"""The service of fer-serve as a Ray Serve deployment: replicas on the machines of a cluster.

    serve run fer_runtime.cluster.deployment:app model=v3 replicas=2

Needs `pip install '.[serve]' 'ray[serve]'` in a clone. Each replica replays the self-test as its health check; one that
no longer computes what was exported is replaced.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fer_runtime.errors import ServeError

if TYPE_CHECKING:
    from fer_runtime.server import ServerSettings

_HEALTH_SECONDS = 10.0  # between two self-tests of a replica
_OPTIONS = ("model", "precision", "detector", "min_confidence", "replicas", "cpus", "token")


def app(args: Mapping[str, str]) -> Any:
    """A Ray Serve application.

    Without a token it answers to localhost only, whatever address Ray's proxies listen on.

    Args:
        args: `model` (names or files, separated by commas), `precision`, `detector`, `min_confidence`, `replicas` (1 by
            default), `cpus` of a replica (1 by default), and `token` (or FER_SERVE_TOKEN where this is called).

    Raises:
        ServeError: an argument is unknown or out of its range.
    """
    from ray import serve

    from fer_runtime.server import create_app, open_recognition

    settings, replicas = _parse(args)
    served: list[Any] = []  # the replica's own models

    def build() -> Any:
        # In the replica: its threads and sessions cannot be sent there.
        served.append(open_recognition(settings))
        return create_app(served[-1])

    class Fer:
        """One replica."""

        async def check_health(self) -> None:
            """The self-test of every model; Ray replaces a replica that raises."""
            for model in served[-1].models:
                if failed := await model.checked(served[-1].computers):
                    raise ServeError(f"{model.name} fails its self-test here: {', '.join(failed)}")

    deployment: Any = serve.deployment(
        name="fer",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": settings.workers},
        max_ongoing_requests=settings.max_requests,
        health_check_period_s=_HEALTH_SECONDS,
    )
    return deployment(serve.ingress(build)(Fer)).bind()


def _parse(args: Mapping[str, str]) -> tuple[ServerSettings, int]:
    """The settings of a replica, and the number of replicas.

    Raises:
        ServeError: an argument is unknown or out of its range.
    """
    from fer_runtime.server import ServerSettings

    if unknown := sorted(set(args) - set(_OPTIONS)):
        raise ServeError(f"unknown argument {unknown[0]}; expected NAME=VALUE with NAME one of: {', '.join(_OPTIONS)}")
    token = args.get("token") or os.environ.get("FER_SERVE_TOKEN")
    threshold = args.get("min_confidence")
    try:
        replicas, cpus = int(args.get("replicas", 1)), int(args.get("cpus", 1))
        min_confidence = float(threshold) if threshold not in (None, "auto") else threshold
        if replicas < 1 or cpus < 1:
            raise ValueError("replicas and cpus must be at least 1")
        if isinstance(min_confidence, float) and not 0 <= min_confidence <= 1:
            raise ValueError(f"min_confidence {min_confidence}")
    except ValueError as error:
        raise ServeError(
            f"replicas and cpus must be whole numbers, min_confidence a number from 0 to 1 or auto ({error})"
        ) from error
    settings = ServerSettings(
        models=tuple(filter(None, args.get("model", "").split(","))),
        precision=args.get("precision"),  # type: ignore[arg-type]  # find_model names those that there are
        detector=args.get("detector", "auto"),
        min_confidence=min_confidence,  # type: ignore[arg-type]
        workers=cpus,
        host="0.0.0.0" if token else "127.0.0.1",
        token=token,
    )
    return settings, replicas
