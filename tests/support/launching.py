"""Commands in the processes of a launcher, as on the command line."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4


ROOT = Path(__file__).parents[2]
#: What each process of `run_in` runs: one command after the other.
COMMANDS = (
    "import json, sys; from vprompt import app; [app(each, standalone_mode=False) for each in json.loads(sys.argv[1])]"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun(processes: int) -> list[str]:
    """`torchrun`, at an address: the name of this machine need not resolve."""
    place = ("--master_addr", "127.0.0.1", "--master_port", str(free_port()))
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), *place]


def accelerate_launch(processes: int) -> list[str]:
    options = ("--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--dynamo_backend", "no")
    port = ("--mixed_precision", "no", "--main_process_port", str(free_port()))
    return [sys.executable, "-m", "accelerate.commands.launch", *options, *port]


def environment(**more: str) -> dict[str, str]:
    # Every process has one thread, as the tests.
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1", **more}


def run_in(launcher: list[str], tmp_path: Path, *commands) -> str:
    """Run commands, one after the other, in the processes of a launcher; give all they printed."""
    script = tmp_path / "commands.py"
    script.write_text(COMMANDS)
    typed = json.dumps([[str(argument) for argument in command] for command in commands])
    run = subprocess.run(
        [*launcher, str(script), typed], capture_output=True, text=True, env=environment(), timeout=280
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


class Launched:
    """A command in the processes of a launcher.

    Attributes:
        launcher: its process.
    """

    def __init__(self, launcher: list[str], *command):
        self.mark = uuid4().hex
        self.launcher = subprocess.Popen(
            [*launcher, "-m", "peft_vprompt", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(LAUNCHED_BY_A_TEST=self.mark),
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for pid in [self.launcher.pid, *self.workers().values()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.launcher.wait()
        self.launcher.stdout.close()

    def workers(self) -> dict[int, int]:
        """Process ids of those that live, by number; a launcher that was killed has them no more."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                is_dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                variables = dict(item.partition("=")[::2] for item in (folder / "environ").read_text().split("\0"))
            except (OSError, UnicodeDecodeError):
                continue
            if variables.get("LAUNCHED_BY_A_TEST") == self.mark and "LOCAL_RANK" in variables and not is_dead:
                found[int(variables["RANK"])] = int(folder.name)
        return found

    def until(self, condition: Callable[[], object], seconds: float) -> float:
        """Wait until a condition holds; give the seconds that it took."""
        start = time.monotonic()
        while not condition():
            assert time.monotonic() - start < seconds, f"not within {seconds:.0f} seconds"
            time.sleep(0.1)
        return time.monotonic() - start
