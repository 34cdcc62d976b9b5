"""The command line starts without the package: help, version and mistyped options import none of the heavy libraries."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from peft_vprompt.data import DataOptions
from peft_vprompt.experiments.models import METHODS
from peft_vprompt.losses import LOSSES
from peft_vprompt.version import __version__
from vprompt import app, choices


ROOT = Path(choices.__file__).parents[1]
HEAVY = {"torch", "transformers", "datasets", "peft", "peft_vprompt", "numpy", "matplotlib"}
COMMANDS = [info.name or info.callback.__name__.replace("_", "-") for info in app.registered_commands]

#: Runs the command, then prints its exit status and the top-level packages that were loaded as the last line.
START = """
import json, sys
from vprompt import app
try:
    app(prog_name="vprompt")
    code = 0
except SystemExit as end:
    code = end.code
packages = {name.partition(".")[0] for name in sys.modules}
print(json.dumps([code or 0, sorted(packages)]))
"""


def start(*arguments, **environment):
    """Run the command in a new process; give its exit status, what it printed and the packages that it loaded."""
    variables = {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "PATH": "", **environment}
    run = subprocess.run(
        [sys.executable, "-c", START, *arguments], capture_output=True, text=True, env=variables, timeout=300
    )
    shown, _, last = run.stdout.rstrip("\n").rpartition("\n")
    code, packages = json.loads(last)
    return code, shown + run.stderr, set(packages)


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=lambda command: " ".join(command))
def test_help_loads_nothing_heavy(command):
    code, shown, packages = start(*command, "--help")
    assert code == 0
    assert " ".join(("Usage: vprompt", *command)) in shown
    assert not packages & HEAVY


@pytest.mark.parametrize(
    ("arguments", "code", "match"),
    [
        ((), 2, "Usage: vprompt"),
        (("--version",), 0, f"vprompt {__version__}"),
        (("methods",), 0, "MaPLe"),
        (("train", "--no-such-option"), 2, "--no-such-option"),
        (("sweep",), 2, "--output"),
        (("train", "--output", "runs/a", "--shots", "many"), 2, "--shots"),
        (("trian",), 2, "trian"),
    ],
)
def test_what_needs_no_work_loads_nothing_heavy(arguments, code, match):
    status, shown, packages = start(*arguments)
    assert status == code, shown
    assert match in shown
    assert not packages & HEAVY


def test_several_processes_are_refused_before_anything_is_loaded():
    code, shown, packages = start("demo", WORLD_SIZE="2")
    assert code == 2
    assert "`vprompt demo` runs in one process. Received: 2" in shown
    assert not packages & HEAVY


def test_the_package_runs_as_a_module():
    run = subprocess.run([sys.executable, "-m", "peft_vprompt", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == f"vprompt {__version__}", run.stderr


def test_the_choices_are_those_of_the_package():
    assert list(choices.METHODS) == list(METHODS)
    assert all(choices.METHODS[name]["title"] == method.title for name, method in METHODS.items())
    assert all(choices.METHODS[name]["new_classes"] == method.new_classes for name, method in METHODS.items())
    assert all(method["learns"] and method["paper"] for method in choices.METHODS.values())
    assert list(LOSSES) == choices.LOSSES
    defaults = DataOptions("path")
    written = {
        name: row["default"] for name, row in choices.DATA.items() if name not in ("path", "where", "label_columns")
    }
    assert written == {name: getattr(defaults, name) for name in written}


def test_the_file_of_choices_is_up_to_date():
    spec = importlib.util.spec_from_file_location("render_choices", ROOT / "docs" / "render" / "choices.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.FILE.read_text(encoding="utf-8") == generator.render(), "run `python docs/render/choices.py`"


def test_methods_says_all_there_is_to_know():
    result = CliRunner().invoke(app, ["methods"], env={"COLUMNS": "300"})
    lines = [line.rstrip() for line in result.output.splitlines()]
    for name, method in choices.METHODS.items():
        row = next(i for i, line in enumerate(lines) if line.split()[:1] == [name])
        assert lines[row].split()[1] == ("yes" if method["new_classes"] else "no")
        assert lines[row].endswith(f"{method['title']}: {method['learns']}")
        assert lines[row + 1].strip() == method["paper"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ('ValueError("bad value")', 2),
        ("FileNotFoundError('bad value')", 2),
        ("datasets.exceptions.DatasetNotFoundError('bad value')", 2),
        ("peft_vprompt.errors.TrainingDivergedError('bad value', epoch=1)", 1),
        ("RuntimeError('bad value')", None),
    ],
)
def test_errors_that_a_user_can_mend_are_one_line(error, code, monkeypatch):
    import datasets

    import peft_vprompt

    raised = eval(error, {"datasets": datasets, "peft_vprompt": peft_vprompt})

    def fail(*arguments, **options):
        raise raised

    monkeypatch.setattr("peft_vprompt.experiments.models.get_method", fail)
    result = CliRunner().invoke(app, ["demo"])
    if code is None:
        assert result.exception is raised
    else:
        assert result.exit_code == code
        assert result.stderr.strip() == "Error: bad value"
    assert CliRunner().invoke(app, ["--traceback", "demo"]).exception is raised


def test_the_benchmark_of_the_start(tmp_path, monkeypatch):
    from examples.benchmarks import startup

    def seconds_of(arguments):
        seconds = 0.8 if "sweep" in arguments else 0.2
        return startup.Taken(seconds, seconds)

    monkeypatch.setattr(startup, "seconds_of", seconds_of)
    monkeypatch.setattr(startup, "read_names", lambda inputs, repeats: {"min_ms": 90.0, "median_ms": 100.0})
    startup.main(output=tmp_path, repeats=2, shape="tiny")
    result = json.loads((tmp_path / "startup.json").read_text())
    with_model = {startup.BASE, startup.FIRST, startup.NAMES}
    assert set(result["cells"]) == {*startup.CASES} | with_model
    assert set(startup.CASES) >= {f"vprompt {name} --help" for name in COMMANDS}
    assert {bar["case"] for bar in result["bars"] if not bar["passed"]} == {"vprompt sweep --help"}
