"""`run_python` gives what `subprocess.run` gives for the same arguments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.commands import run_python
from tests.processes import wait_until

_TELL = """
import os, sys
print(sys.argv[1:], "HOME" in os.environ, os.environ.get("ONE"))
print(sys.path[0] == os.getcwd(), os.getcwd(), sys.stdin.read())
print(sorted(name for name in sys.modules if name.startswith("fer_")), file=sys.stderr)
sys.exit(3)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", _TELL, "a b", "ü"),
        ("-m", "tell", "-x"),
        ("tell.py", "--name=1"),
        ("-c", "import os; os.write(1, b'x' * 300_000)"),
        ("-c", "raise SystemExit('said')"),
        ("-c", f"import os; os.kill(os.getpid(), {int(signal.SIGTERM)})"),
        ("-c", "import atexit, sys; atexit.register(print, 'late'); sys.stdout.write('no end of line')"),
    ],
)
def test_a_run_is_that_of_a_new_interpreter(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "tell.py").write_text(_TELL)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "lib"), "ONE": "1"}
    given = {"input": b"of the list\n", "cwd": tmp_path, "env": environment}
    forked = run_python(*arguments, **given)  # type: ignore[arg-type]
    new = subprocess.run([sys.executable, *arguments], capture_output=True, check=False, **given)  # type: ignore[call-overload]
    assert forked.returncode == new.returncode
    assert (forked.stdout, forked.stderr) == (new.stdout, new.stderr)


def test_a_traceback_is_on_stderr_and_the_exit_code_is_1() -> None:
    run = run_python("-c", "1 / 0")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == b"ZeroDivisionError: division by zero"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_run_without_end_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "process"
    program = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(100)"
    with pytest.raises(subprocess.TimeoutExpired):
        run_python("-c", program, timeout=5)
    number = file.read_text()
    # Ended, and waited for by the process that it was forked from.
    wait_until(lambda: not Path(f"/proc/{number}").exists())
