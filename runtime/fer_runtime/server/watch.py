"""A folder of models that is watched: a new file is served after its self-test has passed, the old one until then."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fer_runtime.errors import FerError
from fer_runtime.model.find import PRECISION_ORDER, AvailableModel, available_models
from fer_runtime.server.logs import log, log_exception
from fer_runtime.server.models import ServedModel, open_model
from fer_runtime.server.recognition import Recognition

POLL_SECONDS = 1.0

_Identity = tuple[str, int, int, int]  # path, inode, bytes, nanoseconds of the last change


class FolderWatch:
    """Serves the models of a folder, and what becomes of them.

    A file is loaded when it did not change from one look to the next. A file that is removed stays in service until
    another one takes its name.

    Args:
        folder: with .onnx files. Of one name, int8 is taken before fp32.
        recognition: that serves them.
    """

    def __init__(self, folder: Path, recognition: Recognition) -> None:
        self._folder = folder
        self._recognition = recognition
        self._seen: dict[str, _Identity] = {}  # by name, at the last look
        self._tried: dict[str, _Identity] = {}  # by name: in service, or refused

    def open_all(self) -> list[ServedModel]:
        """The models that are there now; files that fail are logged and left out."""
        opened = []
        for name, identity in self._look().items():
            self._tried[name] = identity
            if (model := self._open(identity)) is not None:
                opened.append(model)
        return opened

    async def run(self) -> None:
        """Look again and again, until it is cancelled."""
        loop = asyncio.get_running_loop()
        is_away = False
        while True:
            await asyncio.sleep(POLL_SECONDS)
            # Folders may be far away, and a self-test takes a moment: requests are answered meanwhile.
            try:
                found = await loop.run_in_executor(self._recognition.computers, self._look)
            except OSError as error:  # a folder of another machine that is away
                if not is_away:
                    log("model", level="error", result="folder", reason=error.strerror or type(error).__name__)
                is_away = True
                continue
            is_away = False
            for name, identity in found.items():
                if identity == self._tried.get(name) or identity != self._seen.get(name):
                    continue
                self._tried[name] = identity
                try:
                    model = await loop.run_in_executor(self._recognition.computers, self._open, identity)
                except Exception as error:  # one file must not end the watch
                    log_exception(error)
                    continue
                if model is not None:
                    self._recognition.models.put(model)
            self._seen = found

    def _look(self) -> dict[str, _Identity]:
        best: dict[str, AvailableModel] = {}
        rank = PRECISION_ORDER.index
        for model in available_models(self._folder):
            if model.path.parent != self._folder:
                continue  # of the installed package
            known = best.get(model.name)
            if known is None or rank(model.precision) < rank(known.precision):
                best[model.name] = model
        found = {}
        for name, model in best.items():
            try:
                status = model.path.stat()
            except OSError:  # removed a moment ago
                continue
            found[name] = (str(model.path), status.st_ino, status.st_size, status.st_mtime_ns)
        return found

    def _open(self, identity: _Identity) -> ServedModel | None:
        path = Path(identity[0])
        try:
            model = open_model(path, self._recognition.settings)
        except FerError as error:
            self._recognition.metrics.reloads.labels("refused").inc()
            # The file's name is the operator's, not a client's.
            log(
                "model",
                level="error",
                result="refused",
                file=path.name,
                reason=str(error).replace(str(path), path.name),
            )
            return None
        self._recognition.metrics.reloads.labels("served").inc()
        log("model", result="served", file=path.name, name=model.name, sha256=model.sha256)
        return model
