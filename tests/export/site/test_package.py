"""The npm package: packed, installed into a fresh folder, run in Node and, bundled by vite, in Chromium."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from playwright.sync_api import Browser
from tests.chromium import FLAGS, Visit, visiting
from tests.conftest import CHECKOUT
from tests.export.conftest import Exported
from tests.export.site.pages import MODELS, SAMPLES, camera_frame

from fer_bench.browser.measure import find_chromium
from fer_export.site.server import ISOLATED, served
from fer_export.site.write import NPM_PACKAGE, ORT_WEB_VERSION, write_site
from fer_runtime import __version__
from fer_runtime.detectors import Detection
from fer_runtime.faces import prepare_face
from fer_runtime.files import cache_folder
from fer_runtime.model.certificate import MIN_FACES, Certificate, parse_certificate
from fer_runtime.model.opening import read_model
from fer_runtime.recognizer import Recognizer
from fer_runtime.system import available_cpus

_TOOLS = {"onnxruntime-web": ORT_WEB_VERSION, "vite": "7.3.8", "axe-core": "4.14.1"}
_WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
_FILES = ("model_0.onnx", "model_0.int8.onnx")


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def tools() -> Path:
    """A node_modules folder with the packages of other people; fetched once into the cache folder."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs Node.js and npm, which are not installed")
    folder = cache_folder() / "npm" / ("tests-" + "-".join(_TOOLS.values()))
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            made = Path(name) / "tools"
            made.mkdir()
            (made / "package.json").write_text('{"private": true}')
            wanted = [f"{package}@{version}" for package, version in _TOOLS.items()]
            command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", *wanted]
            done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=300)
            if done.returncode:
                pytest.skip(f"npm cannot fetch {', '.join(wanted)}: {done.stderr.strip().splitlines()[-1:]}")
            made.rename(folder)
    return folder / "node_modules"


@pytest.fixture(scope="module")
def installed(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh folder with the package as npm packs it, and the peer dependency beside it."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    npm = str(shutil.which("npm"))
    archive = _run([npm, "pack", str(NPM_PACKAGE), "--silent"], folder).strip()
    quiet = ["--offline", "--legacy-peer-deps", "--ignore-scripts", "--no-audit", "--no-fund"]
    _run([npm, "install", *quiet, f"./{archive}"], folder)
    assert [path.name for path in (folder / "node_modules").iterdir() if path.name[0] != "."] == ["fer-edge"]
    # Linked, because copying onnxruntime-web takes seconds.
    (folder / "node_modules" / "onnxruntime-web").symlink_to(tools / "onnxruntime-web")
    return folder


def _certificate(name: str) -> Certificate:
    return parse_certificate(read_model(MODELS / name).metadata, source=name)


def test_the_package_has_the_release_and_no_dependency_but_a_peer() -> None:
    package = json.loads((NPM_PACKAGE / "package.json").read_text())
    assert package["version"] == __version__
    assert list(package["peerDependencies"]) == ["onnxruntime-web"]
    assert not {"dependencies", "scripts", "devDependencies"} & package.keys()
    assert (NPM_PACKAGE / "LICENSE").read_bytes() == (CHECKOUT / "LICENSE").read_bytes()


_NODE = """
import { readFileSync } from "node:fs";
import { FaceModel } from "fer-edge";
const [faces, rgba, width, height, ...box] = process.argv.slice(2);
const image = { data: readFileSync(rgba), width: Number(width), height: Number(height) };
const answers = [];
for (const path of JSON.parse(readFileSync("paths.json"))) {
  const model = await FaceModel.load(path);
  const { backend, labels } = model;
  const { logits } = await model.run(new Uint8Array(readFileSync(`${faces}-${answers.length}`)));
  const [x, y, w, h] = box.map(Number);
  const { probabilities } = await model.classify(image, { x, y, width: w, height: h });
  const test = await model.selfTest();
  const noise = { data: readFileSync("noise"), width: 48, height: 48 };
  const { reasons, notChecked } = await model.classify(noise);
  // What a damaged file could say.
  const { certificate } = model.metadata;
  for (const name of Object.keys(certificate.tolerance)) certificate.tolerance[name] = 1e9;
  // Beyond the loosest tolerance of a value of any size; 10 more of 20 are within that of int8.
  const familiar = certificate.model_unfamiliarity[0][0];
  certificate.model_unfamiliarity[0][0] = familiar > 0 ? -familiar - 10 : 10 - familiar;
  const strange = (await model.selfTest()).passed;
  certificate.model_unfamiliarity[0][0] = familiar;
  certificate.model_logits[0][0] += 1;
  const forged = (await model.selfTest()).passed || strange;
  answers.push({ backend, labels, logits: Array.from(logits), probabilities, test, forged, reasons, notChecked });
}
console.log(JSON.stringify(answers));
process.exit(0); // onnxruntime-web's threads stay
"""


def test_node_computes_the_certificate(installed: Path) -> None:
    certificates = [_certificate(name) for name in _FILES]
    for number, certificate in enumerate(certificates):
        (installed / f"faces-{number}").write_bytes(certificate.faces.tobytes())
    (installed / "paths.json").write_text(json.dumps([str(MODELS / name) for name in _FILES]))
    image: Any = cv2.imread(str(SAMPLES / "eileen_collins.jpg"))
    (installed / "image").write_bytes(cv2.cvtColor(image, cv2.COLOR_BGR2RGBA).tobytes())
    noise = np.random.default_rng(7).integers(0, 256, (48, 48), np.uint8)
    (installed / "noise").write_bytes(cv2.cvtColor(noise, cv2.COLOR_GRAY2RGBA).tobytes())
    (installed / "run.js").write_text(_NODE)
    box = (166, 65, 114, 114)
    given = ["faces", "image", str(image.shape[1]), str(image.shape[0]), *map(str, box)]
    answers = json.loads(_run(["node", "run.js", *given], installed))
    for name, certificate, answer in zip(_FILES, certificates, answers, strict=True):
        expected = certificate.model_logits if "int8" in name else certificate.network_logits
        logits = np.array(answer["logits"], np.float32).reshape(expected.shape)
        assert (np.abs(logits - expected) <= certificate.tolerance.logits * (1 + np.abs(expected))).all()
        assert answer["test"]["passed"]
        assert answer["test"]["faces"] == len(expected)
        assert not answer["forged"]
        assert answer["backend"] == "wasm"
        with Recognizer(MODELS / name) as recognizer:
            (shares,) = recognizer.classify(prepare_face(image, box)[None])
            (strange,) = recognizer.recognize(noise).faces
        assert (tuple(answer["reasons"]), tuple(answer["notChecked"])) == (strange.reasons, strange.not_checked)
        assert "unfamiliar" in strange.reasons
        assert answer["labels"] == list(certificate.labels)
        # The face differs by one gray level where cv2 rounds in fixed point.
        np.testing.assert_allclose(list(answer["probabilities"].values()), shares, atol=0.05)


_PAGE = """<!doctype html>
<html lang="en">
  <meta charset="utf-8"><title>A camera</title><link rel="icon" href="data:,">
  <meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
  <main><h1>A camera</h1><fer-camera model="model_0.int8.onnx" backend="wasm"></fer-camera></main>
  <script type="module" src="main.js"></script>
</html>
"""
_MAIN = """
import { FaceModel } from "fer-edge";
import "fer-edge/fer-camera";
window.load = async (name, options) => {
  const model = await FaceModel.load(name, options);
  const { backend, ort } = model;
  return { test: await model.selfTest(), backend, refused: model.refused, threads: ort.env.wasm.numThreads };
};
window.ready = true;
"""


@pytest.fixture(scope="module")
def bundle(installed: Path, tools: Path) -> Path:
    """The page of a user, as vite bundles it."""
    (installed / "index.html").write_text(_PAGE)
    (installed / "main.js").write_text(_MAIN)
    # Compressing WebAssembly, to print its size, takes longer than the rest.
    (installed / "vite.config.js").write_text("export default { build: { reportCompressedSize: false } };")
    _run(["node", str(tools / "vite" / "bin" / "vite.js"), "build", "--logLevel", "warn"], installed)
    for name in _FILES:
        shutil.copy(MODELS / name, installed / "dist")
    return installed / "dist"


@pytest.mark.parametrize(
    ("headers", "threads"),
    [
        (None, 1),
        # On one CPU each of the two would wait for the other's turn.
        pytest.param(ISOLATED, 2, marks=pytest.mark.skipif(available_cpus() < 2, reason="two threads need two CPUs")),
    ],
)
def test_a_bundle_computes_the_certificate_on_one_thread_and_on_two(
    browser: Browser, bundle: Path, headers: dict[str, str] | None, threads: int
) -> None:
    with served(bundle, headers=headers) as address, visiting(browser, address) as page:
        page.wait_for("window.ready")
        for name in _FILES:
            found = page.evaluate(f"load('{name}', {{threads: {threads}}})")
            assert found["test"]["passed"], found
            # Chromium without a graphics card offers no WebGPU adapter.
            assert (found["backend"], found["threads"]) == ("wasm", threads)
        # One works beside the page's own thread. Chromium's report of it may come after the page's answer.
        end = time.monotonic() + 30
        while len(page.page.workers) < threads - 1 and time.monotonic() < end:
            page.page.wait_for_timeout(50)  # milliseconds; it receives events meanwhile
        assert len(page.page.workers) == threads - 1
        assert [text for text in page.complaints if "adapter" not in text] == []


def test_a_bundle_takes_webgpu_for_a_file_that_passes_on_it_and_for_no_other(
    browser: Browser, bundle: Path, exported: Exported, tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path, dirs_exist_ok=True)
    model = onnx.load(exported.models_dir / "narrow.onnx")
    # SwiftShader takes a second for a few faces: the fewest that a certificate may have are enough here.
    (entry,) = model.metadata_props
    said = json.loads(entry.value)
    certificate = said["certificate"]
    faces = zlib.decompress(base64.b64decode(certificate["faces"]["zlib_base64"]))[: MIN_FACES * 48 * 48]
    certificate["faces"] = {
        "shape": [MIN_FACES, 48, 48],
        "zlib_base64": base64.b64encode(zlib.compress(faces)).decode(),
    }
    for name in ("network_logits", "model_logits", "model_unfamiliarity"):
        certificate[name] = certificate[name][:MIN_FACES]
    entry.value = json.dumps(said)
    onnx.save(model, tmp_path / "right.onnx")
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name.endswith("conv_block_1.0.bias")]
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] += 0.5
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    # A renderer in software: no graphics card is needed.
    with (
        browser.browser_type.launch(executable_path=find_chromium(), args=[*FLAGS, *_WEBGPU]) as with_webgpu,
        served(tmp_path) as address,
        visiting(with_webgpu, address) as page,
    ):
        page.wait_for("window.ready")
        if not page.evaluate("Boolean(navigator.gpu) && navigator.gpu.requestAdapter().then(Boolean)"):
            pytest.skip("this Chromium has no WebGPU adapter, not even SwiftShader")
        for _ in range(2):  # the first time limit may end while shaders are compiled, which are kept
            found = page.evaluate("load('right.onnx')")
            is_late = [
                refusal["reason"] for refusal in found["refused"] if refusal["reason"].startswith("no answer in")
            ]
            if not is_late:
                break
        else:
            pytest.skip(f"SwiftShader is too slow on this machine now: {is_late}")
        assert (found["backend"], found["refused"], found["test"]["passed"]) == ("webgpu", [], True)
        found = page.evaluate("load('wrong.onnx')")
        assert (found["backend"], found["test"]["passed"]) == ("wasm", False)
        assert [refusal["backend"] for refusal in found["refused"]] == ["webgpu"]


def _accessible(page: Visit, tools: Path, combinations: list[tuple[int, str]]) -> None:
    page.evaluate((tools / "axe-core" / "axe.min.js").read_text("utf-8") + "; null")
    for width, scheme in combinations:
        page.page.set_viewport_size({"width": width, "height": 900})
        page.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        found: Any = page.evaluate(
            "axe.run().then((all) => all.violations.map((violation) => "
            "[violation.impact, violation.id, violation.nodes.map((node) => node.html)]))"
        )
        assert [violation for violation in found if violation[0] in ("serious", "critical")] == [], (width, scheme)


def test_the_cameras_element_names_the_expression(browser: Browser, bundle: Path, tools: Path) -> None:
    side = round(0.7 * 480)
    box = ((640 - side) // 2, (480 - side) // 2, side, side)
    with Recognizer(MODELS / "model_0.int8.onnx") as recognizer:
        faces = prepare_face(camera_frame(), box)[None]
        (expected,) = recognizer.faces([Detection(box=box)], faces, recognizer.answer(faces))
    with served(bundle) as address, visiting(browser, address) as page:
        page.evaluate("window.camera = document.querySelector('fer-camera'); null")
        assert page.evaluate("customElements.whenDefined('fer-camera').then(() => camera.load())")
        page.evaluate("camera.shadowRoot.querySelector('button').click()")
        page.wait_for("camera.faces.length")
        page.wait_for("camera.shadowRoot.querySelector('p').textContent.startsWith('One face')")
        (face,) = page.evaluate("camera.faces")
        _accessible(page, tools, [(400, "dark"), (1280, "light")])
        page.evaluate("camera.shadowRoot.querySelector('button').click()")
        assert page.evaluate("camera.faces") == []
        assert page.complaints == []
    assert tuple(face["box"].values()) == box
    assert face["expression"] == expected.expression


def test_the_site_is_accessible(browser: Browser, has_ort_web: None, tools: Path, yunet: Path, tmp_path: Path) -> None:
    write_site(tmp_path, model=MODELS / "model_0.int8.onnx", yunet=yunet)
    with served(tmp_path) as address, visiting(browser, address) as page:
        page.wait_for("document.getElementById('certificate').className === 'passed'")
        page.evaluate("document.querySelectorAll('.samples button')[2].click()")
        page.wait_for("fer.answers.length === 5")
        _accessible(page, tools, [(width, scheme) for width in (400, 1280) for scheme in ("light", "dark")])
