"""/v1: what the service answers is what fer-infer writes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tests.runtime.server.serving import Service, multipart, serving

from fer_runtime import Recognizer
from fer_runtime.batch.sources import sample_images
from fer_runtime.output.rows import JsonLines

PHOTOS = [Path(path) for path in sample_images()]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service") / "empty", "--detector", "haar") as running:
        yield running


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, Any]]:
    """The rows of the samples, from the library."""
    with Recognizer(detector="haar") as recognizer:
        return {path.name: row_of(recognizer, path.read_bytes(), path.name) for path in PHOTOS}


def row_of(recognizer: Recognizer, content: bytes, name: str) -> dict[str, Any]:
    row = json.loads(JsonLines().row(recognizer.predict(content)))
    return {**row, "path": name}


def jpeg(side: int) -> bytes:
    image = cv2.imread(str(PHOTOS[0]))
    assert image is not None
    return cv2.imencode(".jpg", cv2.resize(image[150:350, 130:330], (side, side)))[1].tobytes()


def test_one_image_as_the_body_gets_its_row(service: Service, expected: dict[str, dict[str, Any]]) -> None:
    name = PHOTOS[1].name
    answer = service.ask("POST", "/v1/images", PHOTOS[1].read_bytes(), content_type="image/jpeg")
    assert answer.status == 200
    assert answer.json["images"] == [{**expected[name], "path": ""}]
    assert (answer.json["model"], answer.json["precision"]) == ("v3", "int8")


def test_what_curl_sends_as_a_form_is_an_image_all_the_same(service: Service) -> None:
    answer = service.ask("POST", "/v1/crops", jpeg(48), content_type="application/x-www-form-urlencoded")
    assert answer.json["images"][0]["faces"]
    assert service.ask("POST", "/v1/images", b"{}", content_type="application/json").status == 415


def test_several_files_get_their_rows_in_order_and_the_bad_one_its_reason(
    service: Service, expected: dict[str, dict[str, Any]]
) -> None:
    first, second = PHOTOS[2], PHOTOS[0]
    body, kind = multipart(
        (first.name, first.read_bytes()), ("note.txt", b"no image"), (second.name, second.read_bytes())
    )
    answer = service.ask("POST", "/v1/images", body, content_type=kind)
    assert answer.status == 200
    rows = answer.json["images"]
    assert rows[0] == expected[first.name]
    assert rows[1]["error"] == "cannot be decoded: damaged, or not an image"
    assert rows[2] == expected[second.name]


def test_crops_are_taken_whole(service: Service) -> None:
    # 96 pixels: /v1/images would search it for faces.
    answer = service.ask("POST", "/v1/crops", jpeg(96), content_type="image/jpeg")
    with Recognizer(detector="whole") as recognizer:
        assert answer.json["images"] == [row_of(recognizer, jpeg(96), "")]


def test_query_options_are_those_of_the_command(service: Service) -> None:
    answer = service.ask("POST", "/v1/images?detector=whole&min_confidence=0.99", jpeg(96))
    with Recognizer(detector="whole", min_confidence=0.99) as recognizer:
        assert answer.json["images"] == [row_of(recognizer, jpeg(96), "")]
    with Recognizer(detector="haar", min_face=150) as recognizer:
        wanted = row_of(recognizer, PHOTOS[2].read_bytes(), "")
    answer = service.ask("POST", "/v1/images?min_face=150", PHOTOS[2].read_bytes())
    assert answer.json["images"] == [wanted]
    assert len(wanted["faces"]) < 5  # of all five


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("detector=best", "detector must be one of"),
        ("min_face=0", "min_face must be a whole number"),
        ("min_face=0000500009999", "min_face must be a whole number"),
        ("min_face=" + "9" * 5000, "min_face must be a whole number"),
        ("detector=whole&min_face=40", "min_face: the detector whole does not use it"),
        ("min_confidence=nan", "min_confidence must be a number"),
        ("min_confidence=2", "min_confidence must be a number"),
        ("annotate=1", "no such option: annotate; this address takes model"),
        ("model=v3&model=v3", "model is given twice"),
    ],
)
def test_options_that_mean_nothing_are_refused(service: Service, query: str, said: str) -> None:
    answer = service.ask("POST", f"/v1/images?{query}", jpeg(48))
    assert answer.status == 400
    assert said in answer.json["error"]


def test_an_unknown_model_is_not_replaced_by_another(service: Service) -> None:
    assert service.ask("POST", "/v1/images?model=mine", jpeg(48)).status == 404


def test_an_address_with_a_slash_at_its_end_is_refused_in_words(service: Service) -> None:
    answer = service.ask("POST", "/v1/images/", jpeg(48))
    assert (answer.status, list(answer.json)) == (404, ["error"])


def test_the_models_are_listed_with_their_self_test(service: Service) -> None:
    answer = service.ask("GET", "/v1/models").json
    assert answer["default"] == "v3"
    (model,) = answer["models"]
    assert model["self_test"]["passed"] is True
    assert {"digest", "logits", "probabilities"} <= {check["name"] for check in model["self_test"]["checks"]}
    assert "/" not in json.dumps(answer).replace("labels", "")  # no path of the machine


def test_ready_is_the_self_test(service: Service) -> None:
    answer = service.ask("GET", "/health/ready")
    assert answer.status == 200
    assert answer.json == {"ready": True, "models": {"v3": {"passed": True, "failed_checks": []}}}


def test_metrics_count_requests_faces_and_stages(service: Service) -> None:
    def value(name: str) -> float:
        lines = service.ask("GET", "/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    before = value("fer_faces_total")
    service.ask("POST", "/v1/images?min_confidence=1", PHOTOS[2].read_bytes())
    assert value("fer_faces_total") == before + 5
    assert value('fer_expressions_refused_total{model="v3",reason="low_confidence"}') >= 5
    assert value('fer_requests_total{route="/v1/images",status="200"}') >= 1
    for stage in ("decode", "detect", "wait", "classify"):
        assert value(f'fer_stage_seconds_count{{stage="{stage}"}}') >= 1


def test_the_log_names_no_file_and_no_address(service: Service) -> None:
    body, kind = multipart(("secret-name.jpg", jpeg(48)))
    assert service.ask("POST", "/v1/images", body, content_type=kind).status == 200
    service.ask("GET", "/secret-path?secret-query")
    service.ask("GET", "/health/live")
    deadline = time.monotonic() + 30
    while not any(line.get("route") == "/health/live" for line in service.lines):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    text = json.dumps(service.lines)
    assert "secret" not in text
    assert "127.0.0.1" not in text
    assert any(line.get("images") == 1 and line["faces"] == 1 and line["ms"] > 0 for line in service.lines)


def test_the_description_lists_every_address_and_fits_the_answers(service: Service) -> None:
    document = service.ask("GET", "/openapi.json").json
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        address = path.replace("{name}", "v3").replace("{version}", "1")
        for method in methods.keys() - {"parameters"}:
            assert service.ask(method.upper(), address).status not in (404, 405)
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install jsonschema")
    for path, schema in (("/v1/models", "models"), ("/health/ready", "ready"), ("/nothing", "error")):
        value = service.ask("GET", path).json
        jsonschema.validate(value, {"$ref": f"#/components/schemas/{schema}", "components": document["components"]})
    rows = service.ask("POST", "/v1/images", PHOTOS[2].read_bytes()).json
    jsonschema.validate(rows, {"$ref": "#/components/schemas/rows", "components": document["components"]})
    rows["images"][0]["faces"][0]["box"] = "here"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(rows, {"$ref": "#/components/schemas/rows", "components": document["components"]})


def test_faces_of_a_gray_image_and_a_color_image_are_classified_together(service: Service) -> None:
    gray = cv2.imencode(".png", np.full((48, 48), 90, np.uint8))[1].tobytes()
    body, kind = multipart(("a.png", gray), ("b.jpg", jpeg(48)))
    answer = service.ask("POST", "/v1/crops", body, content_type=kind)
    assert [len(row["faces"]) for row in answer.json["images"]] == [1, 1]
