"""The served models. Each passes its self-test on this machine before it answers a request."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from fer_runtime.detectors import DETECTORS
from fer_runtime.detectors.search import FaceSearch
from fer_runtime.errors import FerError, ModelFileError
from fer_runtime.images import Uint8Array
from fer_runtime.model.batches import fill_batch
from fer_runtime.model.find import available_models, find_model, is_model_file
from fer_runtime.model.load import load_model
from fer_runtime.model.self_test import SelfTestReport, run_self_test
from fer_runtime.recognizer import Recognizer
from fer_runtime.server.batching import Batcher, Outputs
from fer_runtime.server.errors import RequestError
from fer_runtime.server.settings import ServerSettings

_FRESH_SECONDS = 10.0  # a self-test is replayed at most that often, however often the health check asks
_KEPT_SEARCHES = 8  # detectors with settings that requests asked for


class ServedModel:
    """One model file in memory, with the result of its self-test.

    Args:
        name: by which requests name it.
        path: the file.
        settings: of the service.

    Raises:
        FerError: the file is not a model that runs here.
    """

    def __init__(self, name: str, path: Path, settings: ServerSettings) -> None:
        self.name = name
        self.path = path
        self._settings = settings
        self._loaded = load_model(path, threads=settings.threads, provider=settings.provider)
        # The session that answers requests is the one that is tested.
        self.recognizer = Recognizer(
            path,
            detector=settings.detector,
            yunet=settings.yunet,
            min_face=settings.min_face,
            min_confidence=settings.min_confidence,
            max_pixels=settings.max_pixels,
            threads=settings.threads,
            provider=settings.provider,
            loaded=self._loaded,
        )
        self.metadata = self._loaded.metadata
        self.labels = self.metadata.labels
        self.sha256 = hashlib.sha256(self._loaded.content).hexdigest()
        self.face_shape = self.metadata.face_shape
        self.outputs = tuple(output.name for output in self._loaded.session.get_outputs())
        self.report = self._self_test()
        self.failed_checks = _failed(self.report)  # of the latest self-test
        self._checked_at = monotonic()
        self._checking: asyncio.Future[list[str]] | None = None
        self._searches: dict[tuple[str, int], FaceSearch] = {}
        self.batcher: Batcher | None = None
        self.plans: dict[bytes, Any] = {}  # of /v2, by the JSON of the request

    def compute(self, faces: Uint8Array) -> Outputs:
        """All outputs of the graph for up to a batch of faces."""
        count, fixed = len(faces), self._loaded.batch
        if fixed is not None:
            # Such a graph takes so many faces and no others.
            padded = fill_batch(faces, count + -count % fixed)
            parts = [self._run(padded[start : start + fixed]) for start in range(0, len(padded), fixed)]
            return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}
        return self._run(faces)

    def _run(self, faces: Uint8Array) -> Outputs:
        try:
            answers = self._loaded.session.run(list(self.outputs), {"faces": faces})
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise ModelFileError(f"{self.path} cannot be run by onnxruntime: {error}") from error
        return dict(zip(self.outputs, answers, strict=True))

    def search(self, detector: str | None, min_face: int | None) -> FaceSearch | None:
        """The search that a request asks for; None for the service's own.

        Raises:
            RequestError: the detector's file is missing, or the detector does not use `min_face`.
        """
        if detector is None and min_face is None:
            return None
        key = (detector or self._settings.detector, min_face or self._settings.min_face)
        if min_face is not None and key[0] != "auto" and "min_face" not in DETECTORS[key[0]].uses:
            raise RequestError(400, "options", f"min_face: the detector {key[0]} does not use it; leave it out")
        if key not in self._searches:
            try:
                search = FaceSearch(key[0], yunet=self._settings.yunet, min_face=key[1])
            except FerError as error:
                raise RequestError(
                    422, "detector", f"the service has no detector {key[0]}: its file is missing"
                ) from error
            while len(self._searches) >= _KEPT_SEARCHES:
                self._searches.pop(next(iter(self._searches)))
            self._searches[key] = search
        return self._searches[key]

    def _self_test(self) -> SelfTestReport:
        return run_self_test(
            self.path, provider=self._settings.provider, threads=self._settings.threads, loaded=self._loaded
        )

    async def checked(self, executor: Executor) -> list[str]:
        """The failed checks of the self-test, replayed unless that was done a moment ago."""
        if monotonic() - self._checked_at < _FRESH_SECONDS:
            return self.failed_checks
        if self._checking is None:
            self._checking = asyncio.ensure_future(self._replay(executor))
        # Shielded: several health checks wait for one replay, and one of them may go away.
        return await asyncio.shield(self._checking)

    async def _replay(self, executor: Executor) -> list[str]:
        try:
            self.report = await asyncio.get_running_loop().run_in_executor(executor, self._self_test)
            self.failed_checks = _failed(self.report)
        except FerError:
            self.failed_checks = ["runs"]
        finally:
            self._checked_at = monotonic()
            self._checking = None
        return self.failed_checks

    def describe(self) -> dict[str, Any]:
        """The model for /v1/models, without the path of its file."""
        tested = self.report.to_dict()
        return {
            "name": self.name,
            "precision": self.metadata.precision,
            "labels": list(self.labels),
            "face_shape": list(self.face_shape),
            "provider": self.recognizer.provider,
            "detector": self.recognizer.detector_used,
            "sha256": self.sha256,
            "uncertain_below": self.metadata.uncertain_below,
            "self_test": {"passed": not self.failed_checks, "checks": tested["checks"]},
        }


def _failed(report: SelfTestReport) -> list[str]:
    return [check.name for check in report.checks if not check.passed]


def open_models(settings: ServerSettings) -> list[ServedModel]:
    """The models that the settings name, self-tested.

    Raises:
        FerError: a model is missing, does not load, fails its self-test, or two have one name.
    """
    models: dict[str, ServedModel] = {}
    # A watched folder brings its own.
    for given in settings.models or (() if settings.watch else (None,)):
        path = find_model(
            given, precision=None if is_model_file(given) else settings.precision, models_dir=settings.models_dir
        )
        model = open_model(path, settings)
        if model.name in models:
            raise ModelFileError(
                f"{models[model.name].path} and {path} would both be served as {model.name}; leave one out"
            )
        models[model.name] = model
    return list(models.values())


def open_model(path: Path, settings: ServerSettings) -> ServedModel:
    """One model, self-tested.

    Raises:
        ModelFileError: it does not load, or fails its self-test.
    """
    model = ServedModel(served_name(path), path, settings)
    if not model.report.passed:
        failed = "; ".join(f"{check.name}: {check.detail}" for check in model.report.checks if not check.passed)
        raise ModelFileError(
            f"{path} fails its self-test here and is not served ({failed}); export the model again with fer-export"
        )
    return model


def served_name(path: Path) -> str:
    """The name by which requests ask for the file: `v3` for model_v3.int8.onnx, `mine` for mine.onnx."""
    listed = {model.path.name: model.name for model in available_models(path.parent)}
    return listed.get(path.name, path.stem)


class ModelSet:
    """The models in service by name; a change is seen by requests that begin after it."""

    def __init__(self, models: list[ServedModel], attach: Callable[[ServedModel], None]) -> None:
        self._attach = attach
        for model in models:
            attach(model)
        self._models = {model.name: model for model in models}
        self._default = models[0].name if models else None

    def __iter__(self) -> Any:
        return iter(self._models.values())

    def get(self, name: str | None = None) -> ServedModel:
        """The model of that name, or the first one.

        Raises:
            RequestError: there is none.
        """
        if not self._models:
            raise RequestError(503, "model", "no model is served yet")
        model = self._models.get(self._default or "" if name is None else name)
        if model is None:
            raise RequestError(404, "model", "no such model; GET /v1/models lists those that are served")
        if model.failed_checks:
            raise RequestError(503, "self-test", f"{model.name} fails its self-test here; see /health/ready")
        return model

    @property
    def default(self) -> str | None:
        return self._default

    def put(self, model: ServedModel) -> None:
        """Serve `model` under its name from now on; requests in work keep the one that they have."""
        self._attach(model)
        self._models[model.name] = model
        self._default = self._default or model.name
