"""Runs on the emulated machine: replays model files and prints one JSON line for each.

Its arguments are a pattern for the shipped files, and other files. It needs the installed package alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fer_runtime.model.find import packaged_models_dir
from fer_runtime.model.self_test import run_self_test
from fer_runtime.targets import target_of
from fer_runtime.targets.replay import replay_target

for path in (*sorted(packaged_models_dir().glob(sys.argv[1])), *map(Path, sys.argv[2:])):
    target = target_of(path)
    report = run_self_test(path) if target is None else replay_target(path, target)
    print(json.dumps(report.to_dict()), flush=True)
