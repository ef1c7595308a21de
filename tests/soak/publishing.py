"""`fer-export` with what the process that forked this one has prepared: it judges the files and writes them."""

import runpy
from unittest.mock import patch

from tests.soak.kills import PREPARED

if __name__ == "__main__":
    with patch("fer_export.pipeline.prepare", return_value=PREPARED[0]):
        runpy.run_module("fer_export", run_name="__main__", alter_sys=True)
