"""Time one face in a browser tab: the exported site and face-api.js, both in WebAssembly on one thread, in turns."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from fer_bench.console import json_option, say_environment, show_progress, write_json
from fer_runtime.command import FerCommand, NumberRange, PathlibPath, say
from fer_runtime.errors import FerError
from fer_runtime.extras import needs_extra
from fer_runtime.model.find import MODEL_NAMES, PRECISIONS, Precision
from fer_runtime.shared_options import models_dir_option

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Chromium's sandbox needs rights that containers lack; only pages of ours are opened.
CHROMIUM_FLAGS = ("--no-sandbox", "--disable-gpu")
_TIMEOUT_MS = 60_000
_FACES = 16  # that a tab computes

FACE_API_VERSION = "1.7.15"
_FACE_API_INTEGRITY = "sha512-WDMmK3CfNLo8jylWqMoQgf4nIst3M0fzx1dnac96wv/dvMTN4DxC/Pq1DGtduDk1lktCamQ3MIDXFnvrdHTXDw=="
# The TensorFlow.js inside this face-api.js; its WebAssembly files are a separate package.
_TFJS_VERSION = "4.22.0"
_TFJS_INTEGRITY = "sha512-/IYhReRIp4jg/wYW0OwbbJZG8ON87mbz0PgkiP3CdcACRSvUN0h8rvC0O3YcDtkTQtFWF/tcXq/KlVDyV49wmA=="
FACE_API = "face-api.js"

_PAGE = """<!doctype html><meta charset="utf-8"><title>Timing</title><link rel="icon" href="data:,">
<script type="module" src="bench.js"></script>
"""
_MEASURE = """
const loaded = (await (await fetch("faces.json")).json()).map((text) => {
  const gray = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const canvas = Object.assign(document.createElement("canvas"), { width: 48, height: 48 });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const image = context.createImageData(48, 48);
  gray.forEach((value, index) => image.data.set([value, value, value, 255], 4 * index));
  context.putImageData(image, 0, 0);
  return canvas;
});
window.measure = async (seconds) => {
  const times = [];
  const end = performance.now() + 1000 * seconds;
  for (let index = 0; performance.now() < end; index++) {
    const began = performance.now();
    await answer(loaded[index % loaded.length]);
    times.push(performance.now() - began);
  }
  return times;
};
window.first = await answer(loaded[0]);
window.ready = performance.now();
"""
_OURS = """import { ort } from "./runtime.js";
import { FaceModel } from "./fer-edge/index.js";
const model = await FaceModel.load("model.onnx", { ort, threads: 1 });
const answer = (canvas) => {
  const image = canvas.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, canvas.width, canvas.height);
  return model.classify(image).then(({ probabilities }) => probabilities);
};
"""
_THEIRS = """import * as faceapi from "./face-api.esm.js";
faceapi.tf.env().set("WASM_HAS_MULTITHREAD_SUPPORT", false);
faceapi.tf.setWasmPaths(new URL("./", import.meta.url).href);
if (!(await faceapi.tf.setBackend("wasm"))) throw new Error("no WASM back end");
await faceapi.tf.ready();
await faceapi.nets.faceExpressionNet.loadFromUri("./");
const answer = async (canvas) => ({ ...(await faceapi.nets.faceExpressionNet.predictExpressions(canvas)) });
"""


class BrowserMissingError(FerError):
    """No Chromium is installed."""


def find_chromium() -> str:
    """Path of the installed Chromium or Chrome.

    Raises:
        BrowserMissingError: none is installed.
    """
    path = next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)
    if path is None:
        raise BrowserMissingError(
            f"needs a browser: none of {', '.join(CHROMIUM_NAMES)} is installed; on Debian: apt-get install chromium"
        )
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserResult:
    """Time from a canvas of 48 x 48 pixels to seven named probabilities in a tab."""

    name: str  # "v0 int8" or "face-api.js 1.7.15"
    p50_ms: float
    p95_ms: float
    min_ms: float
    runs: int
    round_p50_ms: tuple[float, ...]
    cold_ms: float  # median: from navigation, in a new browser, to the first answer
    transferred_bytes: int  # in that first visit, uncompressed, HTTP headers included
    probabilities: dict[str, float]  # of the first face, to check the answer

    @property
    def spread(self) -> float:
        """(largest - smallest) / median of the rounds' medians."""
        return (max(self.round_p50_ms) - min(self.round_p50_ms)) / median(self.round_p50_ms)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_browser(
    models: Sequence[tuple[str, Path]],
    *,
    rounds: int,
    seconds: float,
    cold_starts: int = 3,
    with_face_api: bool = True,
    ort_web: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[str, list[BrowserResult]]:
    """Time faces in tabs that take turns.

    Args:
        models: names and exported files.
        rounds: turns of each tab.
        seconds: length of a turn.
        cold_starts: visits in a new browser with an empty profile.
        with_face_api: also measure face-api.js, in the same rounds.
        ort_web: see `write_site`.

    Returns:
        The browser's version and a result for each model, face-api.js last.

    Raises:
        BrowserMissingError: no Chromium is installed.
        DownloadError: a package cannot be fetched.
    """
    from fer_export.site.server import ISOLATED, served

    path = find_chromium()
    with needs_extra("dev"):
        from playwright.sync_api import sync_playwright
    with tempfile.TemporaryDirectory(prefix="fer-edge-browser-") as name, ExitStack() as stack:
        root = Path(name)
        pages = _write_pages(root, models, with_face_api=with_face_api, ort_web=ort_web)
        address = stack.enter_context(served(root, headers=ISOLATED))  # without them the clock is too coarse for a face
        urls = {label: f"{address}{folder.relative_to(root).as_posix()}/bench.html" for label, folder in pages.items()}
        total, done = len(urls) * (cold_starts + rounds), 0
        cold: dict[str, list[tuple[float, int]]] = {label: [] for label in urls}
        times: dict[str, list[list[float]]] = {label: [] for label in urls}
        chromium = stack.enter_context(sync_playwright()).chromium

        def launch() -> Browser:
            return chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)

        def count_turn() -> None:
            nonlocal done
            done += 1
            progress(done, total)

        for _ in range(cold_starts):
            for label, url in urls.items():
                with launch() as browser:
                    cold[label].append(_visit_cold(browser, url))
                count_turn()
        browser = stack.enter_context(launch())
        tabs = {label: browser.new_page() for label in urls}
        first = {label: _open_warm(tab, urls[label], min(seconds, 1.0)) for label, tab in tabs.items()}
        for number in range(rounds):
            for label in list(tabs)[:: 1 if number % 2 == 0 else -1]:
                times[label].append(tabs[label].evaluate(f"measure({seconds})"))
                count_turn()
        return f"Chromium {browser.version}", [
            _result(label, times[label], cold[label], first[label]) for label in urls
        ]


def _write_pages(
    root: Path, models: Sequence[tuple[str, Path]], *, with_face_api: bool, ort_web: Path | None
) -> dict[str, Path]:
    """Write a page for each model, and one for face-api.js; gives their folders by label."""
    pages = {label: _our_page(root / str(index), path, ort_web) for index, (label, path) in enumerate(models)}
    if with_face_api:
        pages[f"{FACE_API} {FACE_API_VERSION}"] = _their_page(root / "face-api")
    faces = json.dumps(_golden_faces(models[0][1]))
    for folder in pages.values():
        (folder / "bench.html").write_text(_PAGE, encoding="utf-8")
        (folder / "faces.json").write_text(faces, encoding="utf-8")
    return pages


def _open_warm(tab: Page, url: str, seconds: float) -> dict[str, float]:
    """Open a page and let it compute for some seconds, so that its code is compiled; gives its first answer."""
    tab.goto(url)
    tab.wait_for_function("window.ready", timeout=_TIMEOUT_MS, polling=50)
    first: dict[str, float] = tab.evaluate("window.first")
    tab.evaluate(f"measure({seconds}).then(() => true)")
    return first


def _result(
    name: str, rounds: list[list[float]], cold: list[tuple[float, int]], first: dict[str, float]
) -> BrowserResult:
    from fer_bench.statistics import percentiles  # loads numpy, which --help does without

    single = percentiles([time for times in rounds for time in times])
    return BrowserResult(
        name=name,
        p50_ms=single.p50,
        p95_ms=single.p95,
        min_ms=single.minimum,
        runs=sum(map(len, rounds)),
        round_p50_ms=tuple(median(times) for times in rounds),
        cold_ms=median(time for time, _ in cold),
        transferred_bytes=round(median(size for _, size in cold)),
        probabilities=first,
    )


def _visit_cold(browser: Browser, url: str) -> tuple[float, int]:
    """Milliseconds until the first answer, and bytes transferred."""
    tab = browser.new_page()
    sizes: list[float] = []
    network = tab.context.new_cdp_session(tab)
    network.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    network.send("Network.enable")
    # Waiting for the network to be idle collects the size of every file.
    tab.goto(url, wait_until="networkidle", timeout=_TIMEOUT_MS)
    tab.wait_for_function("window.ready", timeout=_TIMEOUT_MS, polling=50)
    return float(tab.evaluate("window.ready")), round(sum(sizes))


def _our_page(folder: Path, model: Path, ort_web: Path | None) -> Path:
    from fer_export.site.write import write_site

    write_site(folder, model=model, ort_web=ort_web)
    (folder / "bench.js").write_text(_OURS + _MEASURE, encoding="utf-8")
    return folder


def _their_page(folder: Path) -> Path:
    from fer_export.site.write import fetch_npm_package, read_npm_package

    folder.mkdir(parents=True)
    package = fetch_npm_package("@vladmandic/face-api", FACE_API_VERSION, _FACE_API_INTEGRITY)
    names = {
        "package/dist/face-api.esm.js",
        "package/model/face_expression_model.bin",
        "package/model/face_expression_model-weights_manifest.json",
    }
    contents = read_npm_package(package, names)
    wasm = fetch_npm_package("@tensorflow/tfjs-backend-wasm", _TFJS_VERSION, _TFJS_INTEGRITY)
    contents |= read_npm_package(
        wasm, {f"package/dist/tfjs-backend-wasm{kind}.wasm" for kind in ("", "-simd", "-threaded-simd")}
    )
    for name, content in contents.items():
        (folder / Path(name).name).write_bytes(content)
    (folder / "bench.js").write_text(_THEIRS + _MEASURE, encoding="utf-8")
    return folder


def _golden_faces(model: Path) -> list[str]:
    """The first faces of the model's certificate, in base64: few, because a first visit fetches them."""
    from fer_runtime.model.certificate import parse_certificate
    from fer_runtime.model.onnx_file import read_onnx_file

    metadata = read_onnx_file(model)[0].own_metadata(source=str(model))
    certificate = parse_certificate(metadata, source=str(model))
    return [base64.b64encode(face.tobytes()).decode() for face in certificate.faces[:_FACES]]


@click.command(cls=FerCommand)
@click.option("--model", type=click.Choice(MODEL_NAMES), default="v0", show_default=True, help="Model to time.")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    help="Precision to time. May be repeated. [default: all that exist]",
)
@models_dir_option
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Number of turns per tab.")
@click.option(
    "--seconds", type=NumberRange(min=0, min_open=True), default=1.0, show_default=True, help="Seconds per turn."
)
@click.option("--no-face-api", is_flag=True, help="Skip face-api.js, which is fetched with npm.")
@click.option(
    "--ort-web",
    type=PathlibPath(file_okay=False),
    help="Folder of the unpacked npm package onnxruntime-web. [default: fetched once with npm]",
)
@json_option
def browser(
    model: str,
    precisions: tuple[Precision, ...],
    models_dir: Path,
    rounds: int,
    seconds: float,
    no_face_api: bool,
    ort_web: Path | None,
    json_path: Path | None,
) -> None:
    """Time one face in a browser tab, next to face-api.js.

    Measures the time from a canvas of 48 x 48 pixels to seven named probabilities, in WebAssembly on one thread in a
    headless Chromium: median, 95th percentile and minimum in ms. Also measures the time and size of a first visit.
    """
    from fer_bench.environment import environment
    from fer_bench.latency.measure import BUSY_SPREAD, configurations
    from fer_runtime.model.find import find_model

    if precisions:
        models = [
            (f"{model} {precision}", find_model(model, precision=precision, models_dir=models_dir))
            for precision in precisions
        ]
    else:
        found = configurations(models=(model,), engines=("onnxruntime",), models_dir=models_dir)
        models = [(f"{file.model} {file.precision}", file.source) for file in found]
    machine = environment()
    say_environment(machine)
    version, results = measure_browser(
        models,
        rounds=rounds,
        seconds=seconds,
        with_face_api=not no_face_api,
        ort_web=ort_web,
        progress=show_progress("turn"),
    )
    say(version, err=True)
    theirs = next((result for result in results if result.name.startswith(FACE_API)), None)
    say(f"{'in the tab':20} {'p50 ms':>8} {'p95':>8} {'min':>8} {'speed-up':>8} {'first visit ms':>15} {'MB':>6}")
    for result in results:
        speed_up = f"{theirs.p50_ms / result.p50_ms:.1f} x" if theirs is not None and theirs is not result else ""
        say(
            f"{result.name:20} {result.p50_ms:8.3f} {result.p95_ms:8.3f} {result.min_ms:8.3f} {speed_up:>8} "
            f"{result.cold_ms:15.0f} {result.transferred_bytes / 1e6:6.2f}"
        )
    if (spread := max(result.spread for result in results)) > BUSY_SPREAD:
        say(f"warning: the machine was busy: the rounds of one tab differ by up to {spread:.0%}", err=True)
    write_json(json_path, machine | {"browser": version}, [result.to_dict() for result in results])
