"""`fer-export` with what the process that forked this one has prepared: it judges the files and writes them.

Their speed is measured in few rounds: that takes most of the time otherwise, and writes nothing.
"""

import runpy
from typing import Any
from unittest.mock import patch

from tests.soak.kills import PREPARED

from fer_export.gate.timing import measure_in_turns


def _measured_quickly(*arguments: Any, **options: Any) -> Any:
    return measure_in_turns(*arguments, **options | {"rounds": 2})


if __name__ == "__main__":
    with (
        patch("fer_export.pipeline.prepare", return_value=PREPARED[0]),
        patch("fer_export.pipeline.measure_in_turns", _measured_quickly),
        patch("fer_export.gate.timing._MOST_REPEATS", 1),
    ):
        runpy.run_module("fer_export", run_name="__main__", alter_sys=True)
