"""Detectors on the shipped photographs; YuNet against OpenCV's own decoding of the same file."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fer_runtime import Recognizer
from fer_runtime.batch.sources import sample_images
from fer_runtime.detectors import Detection, create_detector, square_crop, yunet_file
from fer_runtime.detectors.haar import HaarDetector
from fer_runtime.detectors.yunet import YuNetDetector
from fer_runtime.errors import DownloadError, ModelFileError
from fer_runtime.faces import prepare_face
from fer_runtime.images import Uint8Array, read_image

CHECKOUT = Path(__file__).parents[2]


def _sample(number: int) -> Uint8Array:
    return read_image(sample_images()[number])


def _boxes(detections: tuple[Detection, ...]) -> Any:
    return np.array([detection.box for detection in detections])


def test_yunet_finds_what_opencvs_own_detector_finds(yunet: Path) -> None:
    ours = YuNetDetector(yunet)
    for path in sample_images():
        image = read_image(path)
        shrink = min(1.0, 640 / max(image.shape))
        size = (round(image.shape[1] * shrink), round(image.shape[0] * shrink))
        small: Any = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        theirs: Any = cv2.FaceDetectorYN.create(str(yunet), "", size, 0.7, 0.3, 5000).detect(small)[1]
        boxes, scores, landmarks = ours.find(image)
        # Another library computes the same network in float32: a thousandth of a pixel.
        assert boxes == pytest.approx(theirs[:, :4] / shrink, abs=1e-2)
        assert landmarks.reshape(-1, 10) == pytest.approx(theirs[:, 4:14] / shrink, abs=1e-2)
        assert scores == pytest.approx(theirs[:, 14], abs=1e-4)


def test_both_detectors_agree_on_the_photographs(yunet: Path) -> None:
    haar, net = create_detector("haar"), create_detector("yunet", yunet=yunet)
    for path in sample_images():
        image = read_image(path)
        found, expected = _boxes(haar.detect(image)), _boxes(net.detect(image))
        assert len(found) == len(expected)
        centers = found[:, :2] + found[:, 2:] / 2, expected[:, :2] + expected[:, 2:] / 2
        # Two detectors, one face: the centres lie within a quarter of its side.
        assert (np.abs(centers[0] - centers[1]) < expected[:, 2:] / 4).all()


@pytest.mark.parametrize("degrees", [-30, -12, 0, 12, 30])
def test_a_tilted_face_is_turned_upright(degrees: float) -> None:
    image = _sample(0)
    box, eyes = (178, 68, 100, 100), np.array([[204.0, 108.0], [245.0, 108.0]])
    # OpenCV's angle is counter-clockwise, ours clockwise as pixels go. The eyes are turned with the picture.
    matrix = cv2.getRotationMatrix2D((228, 118), -degrees, 1.0)
    turned: Any = cv2.warpAffine(image, matrix, (512, 512), borderMode=cv2.BORDER_REPLICATE)
    right, left = (eyes @ matrix[:, :2].T + matrix[:, 2]).tolist()
    face = Detection(box=box, landmarks=(tuple(right), tuple(left)))
    assert face.roll == pytest.approx(degrees)
    upright = prepare_face(image, box).astype(float)
    aligned = prepare_face(turned, face.box, roll=face.roll).astype(float)
    # Two resamplings blur: alike, not equal.
    assert np.corrcoef(upright.ravel(), aligned.ravel())[0, 1] > 0.95
    if abs(degrees) == 30:
        crooked = prepare_face(turned, face.box).astype(float)
        assert np.corrcoef(upright.ravel(), crooked.ravel())[0, 1] < 0.8


def test_roll_is_the_angle_of_the_eyes_worked_by_hand() -> None:
    assert Detection(box=(0, 0, 9, 9), landmarks=((10, 10), (20, 20))).roll == pytest.approx(45)
    assert Detection(box=(0, 0, 9, 9)).roll == 0


def test_turning_by_a_right_angle_is_numpys_rotation() -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 96), np.uint8)
    straight = prepare_face(image, (24, 24, 48, 48))
    # A face that is turned clockwise by 90 degrees is turned back, counter-clockwise.
    assert np.array_equal(prepare_face(image, (24, 24, 48, 48), roll=90), np.rot90(straight))


def test_a_crop_is_square_and_lies_where_it_was_measured() -> None:
    # Side 1.5 * 40; the centre (30, 50) moves down by 0.1 * 40.
    assert square_crop((20, 30, 20, 40), (1.5, 0.1)) == (0, 24, 60, 60)


def test_tiny_faces_can_be_left_out(yunet: Path) -> None:
    image = _sample(2)
    # The five faces are 66 to 145 pixels high, two of them more than 100.
    assert len(create_detector("yunet", yunet=yunet).detect(image)) == 5
    large = create_detector("yunet", yunet=yunet, min_face=130).detect(image)
    assert [face.box[2] > 130 for face in large] == [True, True]


def _small_faces() -> Uint8Array:
    """The five faces of a photograph, of 57 to 157 pixels, in one of 4000 x 3000."""
    photograph, large = _sample(2), np.full((3000, 4000, 3), 128, np.uint8)
    large[1200 : 1200 + photograph.shape[0], 1500 : 1500 + photograph.shape[1]] = photograph
    return large


def test_where_haar_finds_no_face_it_searches_a_still_picture_again_for_smaller_ones() -> None:
    large = _small_faces()
    expected = _boxes(create_detector("haar").detect(_sample(2)))
    assert create_detector("haar").detect(large) == ()
    with Recognizer("v0", detector="haar") as recognizer:
        found = _boxes(recognizer.detect(large))
        assert recognizer.detect(large, is_frame=True) == ()
        assert recognizer.recognize(large, is_frame=True).faces == ()
    # At 1280 pixels the cascade's 20 are 62: the faces of the photograph that are larger, each where it was put.
    assert len(found) == 3
    for box in found - (1500, 1200, 0, 0):
        assert (np.abs(expected - box).max(1) < 0.3 * box[2]).any()


@pytest.mark.parametrize(
    ("size", "min_face", "sides"),
    [
        ((3000, 4000), 24, [1280]),
        ((3000, 4000), 200, [400]),  # 20 of 400 pixels are 200 of 4000
        ((3000, 4000), 250, []),
        ((600, 700), 24, [584]),  # 700 * 20 / 24, rounded up
        ((600, 700), 1, [700]),
        ((200, 300), 24, []),
    ],
)
def test_haars_second_search_is_as_large_as_the_smallest_face_asks_for(
    size: tuple[int, int], min_face: int, sides: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []

    def search(detector: HaarDetector, gray: Uint8Array, side: int) -> tuple[Detection, ...]:
        searched.append(side)
        return ()

    monkeypatch.setattr(HaarDetector, "_search", search)
    assert HaarDetector(min_face=min_face).search_again(np.zeros(size, np.uint8)) == ()
    assert searched == sides


def test_auto_takes_yunet_where_its_file_is(yunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path))
    assert create_detector("auto").name == "haar"
    assert create_detector("auto", yunet=yunet).name == "yunet"
    with pytest.raises(ModelFileError, match="fetch-yunet"):
        create_detector("yunet")


def test_a_yunet_file_that_is_given_is_never_replaced_by_haar_in_silence(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no YuNet at .*none\.onnx"):
        Recognizer("v0", yunet=tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelFileError, match=r"text\.onnx cannot be read as an ONNX model"):
        Recognizer("v0", yunet=tmp_path / "text.onnx")


def test_a_file_that_is_no_yunet_is_refused() -> None:
    with pytest.raises(ModelFileError, match="is not a YuNet face detector"):
        YuNetDetector(CHECKOUT / "models" / "model_0.onnx")
    with pytest.raises(ModelFileError, match="download one with: fer-infer --fetch-yunet"):
        YuNetDetector(CHECKOUT / "none.onnx")


class _Files(BaseHTTPRequestHandler):
    content = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[str]:
    served = HTTPServer(("127.0.0.1", 0), _Files)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_address[1]}/yunet.onnx"
    served.shutdown()
    served.server_close()


def test_only_the_pinned_bytes_are_kept(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path))
    _Files.content = bytes(range(256)) * 10
    with pytest.raises(DownloadError, match="nothing was kept"):
        yunet_file.fetch_yunet(url=server)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(yunet_file, "SIZE", 2560)
    monkeypatch.setattr(yunet_file, "SHA256", hashlib.sha256(_Files.content).hexdigest())
    path = yunet_file.fetch_yunet(url=server)
    assert path.read_bytes() == _Files.content
    # The second time nothing is asked of the network.
    assert yunet_file.fetch_yunet(url="http://127.0.0.1:9/") == path


def test_an_answer_that_is_no_http_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path))

    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"nobody speaks HTTP here\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        with pytest.raises(DownloadError, match="--yunet FILE"):
            yunet_file.fetch_yunet(url=f"http://127.0.0.1:{listener.getsockname()[1]}/yunet.onnx")


def test_offline_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path))
    with pytest.raises(DownloadError, match="--yunet FILE"):
        yunet_file.fetch_yunet(url="http://127.0.0.1:9/yunet.onnx")


def test_a_server_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path))
    monkeypatch.setattr(yunet_file, "_TOTAL_SECONDS", 1.0)
    stopped = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            while not stopped.wait(0.1):
                connection.sendall(b"a")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        thread = threading.Thread(target=drip, args=(listener,), daemon=True)
        thread.start()
        with pytest.raises(DownloadError, match=r"not complete after 1 s\); .*--yunet FILE"):
            yunet_file.fetch_yunet(url=f"http://127.0.0.1:{listener.getsockname()[1]}/yunet.onnx")
        stopped.set()
        thread.join(10)
    assert list(tmp_path.iterdir()) == []


def test_the_cached_file_is_checked_when_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path))
    with pytest.raises(ModelFileError, match="fer-infer --fetch-yunet"):
        create_detector("yunet")
    content = bytes(range(256)) * 10
    monkeypatch.setattr(yunet_file, "SHA256", hashlib.sha256(content).hexdigest())
    yunet_file.yunet_path().write_bytes(content)
    assert yunet_file.cached_yunet() == yunet_file.yunet_path()
    yunet_file.yunet_path().write_bytes(content[:-1] + b"\0")
    for name in ("auto", "yunet"):
        with pytest.raises(ModelFileError, match=r"damaged or another file .* fer-infer --fetch-yunet"):
            create_detector(name)


def test_boxes_inside_each_other_are_one_face_and_neighbours_are_two() -> None:
    from fer_runtime.detectors.haar import _apart

    inside = [(100, 100, 80, 80), (110, 105, 50, 50), (90, 92, 110, 110)]
    assert _apart(inside) == inside[:1]
    cheek_to_cheek = [(100, 100, 80, 80), (150, 100, 80, 80)]
    assert _apart(cheek_to_cheek) == cheek_to_cheek
