"""Damaged pictures and models, a full disk, no network: no crash, no hang, no traceback, nothing lost."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.runtime.fuzz import mutations, picture_seeds, try_model, try_picture
from tests.runtime.tiny_models import band_face, write_band_model

from fer_runtime.batch.sources import sample_images
from fer_runtime.errors import ProviderError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.model.session import available_providers, find_provider, open_session
from fer_runtime.system import available_cpus, cgroup_quota


def test_mutated_pictures_are_read_or_refused() -> None:
    outcomes = Counter(try_picture(content) for content in islice(mutations(picture_seeds(), seed=0), 3000))
    # Both happen often: the damage is neither always fatal nor never.
    assert min(outcomes["read"], outcomes["refused"]) > 300


def test_mutated_models_are_loaded_or_refused(tmp_path: Path) -> None:
    model = write_band_model(tmp_path / "bands.onnx").read_bytes()
    # Most of a model is weights; its structure is what the damage is for.
    outcomes = Counter(try_model(content, tmp_path) for content in islice(mutations([model], seed=0), 300))
    assert outcomes["refused"] > 50


def test_a_model_that_wants_outside_data_reaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    from fer_runtime import Recognizer
    from fer_runtime.errors import ModelFileError

    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(48 * 48 * 7 * 4))
    folder = tmp_path / "models"
    folder.mkdir()
    model = onnx.load(write_band_model(folder / "bands.onnx"))
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    location = weights.external_data.add(key="location")
    monkeypatch.chdir(folder)
    (folder / "beside.bin").write_bytes(secret.read_bytes())
    for location.value in ("../secret.bin", str(secret), "beside.bin", "./beside.bin", "../models/beside.bin"):
        (folder / "outside.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ModelFileError, match="are in another file"):
            Recognizer(folder / "outside.onnx")


def test_the_log_of_an_application_that_embeds_the_runtime_stays_its_own(tmp_path: Path) -> None:
    # A constant that nobody uses is what onnxruntime warns of.
    script = (
        "import sys, onnxruntime, onnx, numpy; import fer_runtime.model.session as session;"
        "model = onnx.load(sys.argv[1]); model.graph.initializer.append("
        "onnx.numpy_helper.from_array(numpy.zeros(3, numpy.float32), 'unused'));"
        "content = model.SerializeToString();"
        "session.open_session(content); print('--', file=sys.stderr, flush=True); onnxruntime.InferenceSession(content)"
    )
    file = write_band_model(tmp_path / "bands.onnx")
    run = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, timeout=120)
    ours, theirs = run.stderr.split("--")
    assert (run.returncode, ours.strip()) == (0, "")
    assert "unused" in theirs


def test_nothing_but_rows_reaches_standard_output(tmp_path: Path) -> None:
    # onnxruntime's fallback prints on standard output when a name in the graph is no UTF-8.
    content = write_band_model(tmp_path / "bands.onnx").read_bytes()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(content.replace(b"MatMul", b"MatM\xeb\xff"[:6]))
    run = _infer("--samples", "--model", broken)
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.startswith(f"Error: {broken} cannot be read as an ONNX model")


def _infer(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fer_runtime", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file size differ")
def test_a_full_disk_at_the_output_is_one_error_line_and_loses_no_row(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(2000):
        cv2.imwrite(str(pictures / f"{number:04}.png"), band_face(number % 7))
    model = write_band_model(tmp_path / "bands.onnx")
    output = tmp_path / "rows.jsonl"

    def limit() -> None:
        import signal

        # A file may grow to 300 kB: the write after that fails, as on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    run = _infer(pictures, "--model", model, "--output", output, preexec_fn=limit)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1].startswith(f"Error: cannot write {output}")
    assert "--resume" in run.stderr
    assert not output.exists()
    # With room again, the run goes on and ends whole.
    assert _infer(pictures, "--model", model, "--output", output, "--resume").returncode == 0
    assert len(output.read_text().splitlines()) == 2000


# An audit hook sees every file that Python opens and every socket, in this process and from its start.
_WATCH = """
import json, os, sys
seen = {"written": [], "network": []}
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        mode, flags = arguments[1], arguments[2]
        if (mode and set(str(mode)) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen["written"].append(os.fsdecode(arguments[0]))
    elif event.startswith("socket.") and event not in ("socket.gethostname",):
        seen["network"].append(event)
sys.addaudithook(watch)
from fer_runtime.cli import main
try:
    main(sys.argv[1:], standalone_mode=False)
except SystemExit:
    pass
print("SEEN " + json.dumps(seen), file=sys.stderr)
"""


def test_a_run_opens_no_network_and_writes_nothing_but_its_output(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    output = tmp_path / "rows.jsonl"
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-B", "-c", _WATCH, "--samples", "--output", str(output)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path)
    seen = json.loads(next(line for line in run.stderr.splitlines() if line.startswith("SEEN "))[5:])
    assert seen["network"] == []
    assert {path for path in seen["written"] if path != os.devnull} == {
        f"{output}.partial",
        f"{output}.partial.settings",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "rows.jsonl"]
    # The libraries below Python leave nothing either: ONNX Runtime's telemetry would, in the cache folder.
    assert list(home.rglob("*")) == []
    assert len(output.read_text().splitlines()) == len(sample_images())


def test_a_provider_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ProviderError, match=r"no execution provider Abacus here; it has: .*CPU.*leave out --provider"):
        find_provider("Abacus")
    if "TensorRT" not in available_providers():
        with pytest.raises(ProviderError, match="comes with onnxruntime-gpu, in an environment"):
            find_provider("tensorrt")
    assert find_provider("cpu") == find_provider("CPUExecutionProvider") == "CPU"
    run = _infer("--samples", "--provider", "Abacus")
    assert run.returncode == 1
    assert run.stderr.startswith("Error: onnxruntime")


def test_a_session_says_what_it_really_runs_on(tmp_path: Path) -> None:
    assert open_session(write_band_model(tmp_path / "m.onnx"), strict=True).provider == "CPU"


def test_the_self_test_takes_a_provider_in_any_spelling_and_onnxruntime_under_any_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib.metadata

    from fer_runtime.model.find import find_model
    from fer_runtime.model.self_test import run_self_test

    def only_the_gpu_build(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", only_the_gpu_build)
    for spelling in ("cpu", "CPUExecutionProvider"):
        assert run_self_test(find_model("v0"), provider=spelling, strict=True).passed


@pytest.mark.skipif("Azure" not in available_providers(), reason="needs a provider that takes no local model")
def test_a_provider_that_takes_nothing_of_the_model_is_a_fallback(tmp_path: Path) -> None:
    model = write_band_model(tmp_path / "m.onnx")
    if not hasattr(open_session(model).session, "get_provider_graph_assignment_info"):
        pytest.skip("this onnxruntime does not say which provider takes what")
    assert open_session(model, provider="Azure").provider == "CPU"
    with pytest.raises(ProviderError, match="fell back from Azure to CPU"):
        open_session(model, provider="Azure", strict=True)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_threads_count_the_cpus_that_the_process_may_use() -> None:
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); " + (
        "from fer_runtime.system import available_cpus; print(available_cpus())"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "1"
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)


def test_more_threads_than_cpus_are_said_and_not_started() -> None:
    run = _infer("--samples", "--threads", 10_000)
    assert run.returncode == 0
    assert run.stderr.startswith(f"warning: 10000 threads are more than the {available_cpus()} CPUs")
    chosen = _infer("--samples", "--threads", 10_000, "--provider", "auto")
    assert chosen.stderr.count("10000 threads are more than") == 1


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota_is_read(tmp_path: Path, files: dict[str, str], cpus: float | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cgroup_quota(tmp_path) == cpus


def test_rows_hold_to_the_shipped_schema(tmp_path: Path) -> None:
    """Checked by hand against the schema's own words; the base install has no validator."""
    import fer_runtime

    schema = json.loads((Path(fer_runtime.__file__).parent / "schema" / "image.schema.json").read_text())
    (tmp_path / "broken.png").write_bytes(b"none")
    run = _infer("--samples", tmp_path, "--min-confidence", "0.5", "--format", "jsonl")
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(rows) == len(sample_images()) + 1
    face_schema = schema["$defs"]["face"]
    for row in rows:
        assert set(schema["required"]) == set(row)
        assert (row["error"] is None) == (row["width"] is not None)
        for face in row["faces"]:
            assert set(face_schema["required"]) <= set(face) <= set(face_schema["properties"])
            assert face["expression"] in face["probabilities"]
            assert tuple(face["probabilities"]) == EXPRESSIONS
            assert np.isclose(sum(face["probabilities"].values()), 1, atol=1e-5)
