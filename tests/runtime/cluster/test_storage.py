"""Object stores and actors: a folder that cannot be listed is an error, an outage is one reason, no file is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import pytest
from tests.runtime.tiny_models import band_face, write_band_model

from fer_runtime.cluster.engine import _remove_leftovers
from fer_runtime.errors import ClusterError, OutputError
from fer_runtime.registry import load_plugins

pytest.importorskip("pyarrow", reason="needs the extra `ray`")

_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


def _python(script: str, *arguments: object, endpoint: str) -> subprocess.CompletedProcess[str]:
    # A process of its own: pyarrow reads the environment once.
    environment = {**os.environ, **_CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


_DETECTOR = """
from fer_runtime.detectors import DETECTORS, Detection, DetectorEntry


class Corner:
    name = "corner"

    def detect(self, image):
        return (Detection(box=(0, 0, 48, 48)),)


DETECTORS.register(DetectorEntry(name="corner", help="the upper left corner", create="edge_plugin:make"))


def make(options):
    return Corner()
"""


def test_an_outage_has_one_reason_and_no_folder_is_taken_for_an_image() -> None:
    script = (
        "import sys; from fer_runtime.cluster.storage import RemoteFolders, read_uri\n"
        "from fer_runtime.errors import FerError\n"
        "path = sys.argv[1]\n"
        "try: read_uri(path) if path.endswith('.jpg') else list(RemoteFolders([path]))\n"
        "except FerError as error: print(type(error).__name__, error)\n"
    )
    uris = ("s3://one/a/1.jpg", "s3://other/3.jpg", "s3://one", "s3://one/folder")
    # At once: pyarrow tries each for six seconds, one after another in one process.
    with ThreadPoolExecutor(len(uris)) as pool:
        runs = list(pool.map(lambda uri: _python(script, uri, endpoint="http://127.0.0.1:1"), uris))
    *images, bucket, folder = (run.stdout.strip() for run in runs)
    assert len(set(images)) == 1, [run.stdout + run.stderr for run in runs]
    assert images[0].startswith("ImageError cannot be read: AWS Error NETWORK_CONNECTION")
    assert bucket.startswith("InputError cannot list s3://one: AWS Error NETWORK_CONNECTION")
    assert folder.startswith("InputError cannot list s3://one/folder: ")


def test_a_local_uri_that_names_nothing_is_an_error_and_an_image_a_row(tmp_path: Path) -> None:
    from fer_runtime.cluster.storage import RemoteFolders
    from fer_runtime.errors import InputError

    assert list(RemoteFolders([f"file://{tmp_path}/1.jpg"])) == [f"file://{tmp_path}/1.jpg"]
    with pytest.raises(InputError, match="there is no such folder or bucket"):
        list(RemoteFolders([f"file://{tmp_path}/typo"]))
    with pytest.raises(InputError, match="there is no such folder or bucket"):
        list(RemoteFolders([f"file://{tmp_path}/typo/"]))


def test_an_actor_gives_the_rows_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fer_runtime import Recognizer
    from fer_runtime.cluster.engine import ShardRecognizer, pack_recognizer
    from fer_runtime.cluster.pool import Shard
    from fer_runtime.files import CACHE_VARIABLE

    private = tmp_path / "temporary"
    private.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(private))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))  # the actor sets it, in a process that is its own
    cv2.imwrite(str(tmp_path / "1.png"), band_face(4))
    with Recognizer(write_band_model(tmp_path / "bands.onnx")) as recognizer:
        recipe = pack_recognizer(recognizer)
        actor = ShardRecognizer(recipe, output=None, format_name="jsonl", folder=str(tmp_path))
        assert list(private.iterdir()) == []
        paths = json.dumps(["1.png", "missing.png"])
        given = actor.recognize(Shard(number=0, paths=paths))
        read, missing = (json.loads(line) for line in given.rows.splitlines())
        assert read["faces"][0]["expression"] == recognizer.metadata.labels[4]
        assert missing["error"] == "cannot be opened: No such file or directory"
        assert json.loads(given.summary)["images"] == 2


def test_an_actor_has_the_drivers_plugins_or_says_that_it_cannot_import_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fer_runtime import Recognizer
    from fer_runtime.cluster.engine import ShardRecognizer, pack_recognizer
    from fer_runtime.cluster.pool import Shard
    from fer_runtime.detectors import DETECTORS
    from fer_runtime.files import CACHE_VARIABLE

    (tmp_path / "edge_plugin.py").write_text(_DETECTOR, encoding="utf-8")
    cv2.imwrite(str(tmp_path / "1.png"), band_face(4))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv("FER_EDGE_PLUGINS", "edge_plugin")
    monkeypatch.syspath_prepend(tmp_path)
    entries = dict(DETECTORS._entries)
    shard = Shard(number=0, paths=json.dumps(["1.png"]))

    def actor() -> ShardRecognizer:
        # A process of Ray: nothing is registered or imported.
        monkeypatch.setattr(DETECTORS, "_entries", dict(entries))
        monkeypatch.delitem(sys.modules, "edge_plugin", raising=False)
        return ShardRecognizer(recipe, output=None, format_name="jsonl", folder=str(tmp_path))

    monkeypatch.setattr(DETECTORS, "_entries", dict(entries))
    load_plugins()
    with Recognizer(write_band_model(tmp_path / "bands.onnx"), detector="corner") as recognizer:
        recipe = pack_recognizer(recognizer, detector="corner")
    monkeypatch.setenv("FER_EDGE_PLUGINS", "")  # of another machine
    (row,) = actor().recognize(shard).rows.splitlines()
    assert json.loads(row)["faces"][0]["box"] == [0, 0, 48, 48]
    (tmp_path / "edge_plugin.py").unlink()
    with pytest.raises(ClusterError, match="cannot import a module of FER_EDGE_PLUGINS: No module named 'edge_plugin'"):
        actor().recognize(shard)


def test_an_actors_error_names_the_damaged_list_and_not_what_it_was_raised_from() -> None:
    from fer_runtime.cluster.engine import _cause
    from fer_runtime.cluster.shards import parse_paths

    # Ray passes an actor's exception on as its traceback, with advice of its own behind it.
    with pytest.raises(OutputError) as raised:
        parse_paths(b'{"a": 1}', name="paths/000000.json")
    text = "".join(traceback.format_exception(raised.value)) + "\nray.exceptions.UserCodeException: UDF failed\n"
    assert "ValueError: no list of paths" in text
    assert str(_cause(RuntimeError(text))).startswith("paths/000000.json is damaged")


def test_folders_and_stores_of_s3_work_and_keys_that_cannot_be_read_are_named() -> None:
    pytest.importorskip("moto.server", reason="needs moto, in an environment of its own: make test-s3")
    script = """
import os, sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
os.environ["AWS_ENDPOINT_URL"] = "http://%s:%s" % server.get_host_and_port()
import boto3
from fer_runtime.cluster.storage import RemoteFolders, open_store, read_uri
from fer_runtime.errors import FerError
client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
client.create_bucket(Bucket="photos")
for key in ("images/1.png", "images/deep/2.png", "images/notes.txt", "twice//3.png"):
    client.put_object(Bucket="photos", Key=key, Body=key.encode())
def say(work):
    try:
        print(work())
    except FerError as error:
        print(type(error).__name__, error)
say(lambda: list(RemoteFolders(["s3://photos/images"], False)))
say(lambda: list(RemoteFolders(["s3://photos/images"], True)))
say(lambda: read_uri("s3://photos/images/1.png"))
say(lambda: read_uri("s3://photos/images/none.png"))
say(lambda: read_uri("s3://photos/twice//3.png"))
for uri in ("s3://photos/twice", "s3://photos", "s3://photos/typo", "s3://nobody"):
    say(lambda: list(RemoteFolders([uri], True)))
store = open_store("s3://photos/rows")
store.write("part-000000.jsonl", b"row")
say(lambda: (store.names(), store.read("part-000000.jsonl"), store.read("other")))
sys.stdout.flush()
os._exit(0)
"""
    run = _python(script, endpoint="")
    nothing = "there is no such folder or bucket; check its name and your permissions"
    empty_name = "pyarrow cannot read such keys, so copy them to others first"
    assert run.stdout.splitlines() == [
        "['s3://photos/images/1.png']",
        "['s3://photos/images/1.png', 's3://photos/images/deep/2.png']",
        "b'images/1.png'",
        "ImageError cannot be read: No such file or directory",
        f"ImageError cannot be read: its key has an empty folder name (//); {empty_name}",
        f"InputError cannot list s3://photos/twice: it holds keys with an empty folder name (//); {empty_name}",
        f"InputError cannot list s3://photos/twice: it holds keys with an empty folder name (//); {empty_name}",
        f"InputError cannot list s3://photos/typo: {nothing}",
        f"InputError cannot list s3://nobody: {nothing}",
        "({'part-000000.jsonl'}, b'row', None)",
    ], run.stderr


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_leftovers_of_killed_actors_are_removed(tmp_path: Path, scheme: str) -> None:
    left = [tmp_path / ".part-0.jsonl.123.partial", tmp_path / "_job" / "counts" / ".0.json.5.partial"]
    kept = tmp_path / "part-0.jsonl"
    left[1].parent.mkdir(parents=True)
    for file in (*left, kept):
        file.touch()
    _remove_leftovers(f"{scheme}{tmp_path}")
    assert [file.exists() for file in (*left, kept)] == [False, False, True]
