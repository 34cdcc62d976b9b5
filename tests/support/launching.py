"""Commands in the processes of a launcher, as on the command line."""

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path


ROOT = Path(__file__).parents[2]
#: What each process of `run_in` runs: one command after the other.
COMMANDS = "import json, sys; from vprompt import app; [app(each, standalone_mode=False) for each in json.loads(sys.argv[1])]"


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


def environment() -> dict[str, str]:
    # Every process has one thread, as the tests.
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


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


@contextmanager
def started(launcher: list[str], *command):
    """A command in the processes of a launcher while the block runs; what it prints is in `stdout`."""
    process = subprocess.Popen(
        [*launcher, "-m", "peft_vprompt", *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        for pid in [*workers(process.pid), process.pid]:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass
        process.wait()
        process.stdout.close()


def workers(launcher: int) -> dict[int, int]:
    """The processes of a launcher that live, by process id, with the number of each."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            variables = dict(item.partition("=")[::2] for item in (folder / "environ").read_text().split("\0"))
        except (OSError, UnicodeDecodeError):
            continue
        if int(status[1]) == launcher and status[0] != "Z" and "LOCAL_RANK" in variables:
            found[int(folder.name)] = int(variables["RANK"])
    return found
