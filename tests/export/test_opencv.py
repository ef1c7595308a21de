"""A file with a fixed batch in OpenCV's dnn module, which reads no dynamic one."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest
from tests.export.conftest import narrow_metadata

from fer_export.gate.golden import synthetic_faces
from fer_export.graph import fix_batch, serialize
from fer_runtime.model.parity import run_model
from fer_runtime.model.session import open_session


@pytest.mark.parametrize("batch", [1, 4])
def test_opencv_reads_a_fixed_batch_of_float32(narrow_graph: onnx.ModelProto, batch: int) -> None:
    faces = synthetic_faces()
    expected = run_model(open_session(serialize(narrow_graph, narrow_metadata())).session, faces).probabilities
    content = serialize(fix_batch(narrow_graph, batch), narrow_metadata())
    network = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))
    for start in range(0, len(faces), batch):
        network.setInput(faces[start : start + batch].astype(np.float32))
        found = network.forward("probabilities")
        # Two libraries add the same float32 products in another order: 3e-6 was measured.
        assert np.abs(found - expected[start : start + batch]).max() < 1e-4
