"""Any value of any option: a command does its work, or says in one line what is wrong. No traceback, no hang."""

import warnings
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from tests.support.bench_cells import base_to_novel, save_cells
from tests.support.open_clip import build, published
from vprompt import app


hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install .[dev]")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

COMMANDS = typer.main.get_command(app).commands

#: Values of which few can be right for an option, and none does harm.
ANYTHING = st.one_of(
    st.integers(-2, 6).map(str),
    st.sampled_from(["", " ", "nan", "inf", "-inf", "0.5", "1000000000", "9" * 400, "1e400", "True", "no", "null"]),
    st.sampled_from(
        ["[1,2]", "{}", "a,b,,", ",", "nan,1", "1,,2", "a=b", "=b", "a=", "a@", "@", "*", "~", "\0", "\ud800"]
    ),
    st.sampled_from(["x" * 5000, "../..", "no/such/place", "http://localhost:9/x", "hf://a/b", "coop:", "coop:a=b"]),
    st.text(max_size=8),
)

#: What commands take without an option.
ARGUMENTS = {"convert": "model.pth", "convert-clip": "RN.pt", "inspect": "adapter", "report": "bench"}

#: Options that say where a command writes, the Hub for one, and those that only let it take long.
LEFT_OUT = {"help", "output", "diagnosis", "epochs", "wait", "push_to_hub"}


def options_of(command):
    return [parameter for parameter in COMMANDS[command].params if parameter.name not in LEFT_OUT]


@st.composite
def calls(draw):
    """Draw a command and values of one or two of its options."""
    command = draw(st.sampled_from(sorted(set(COMMANDS) - {"methods", "app", "push"})))
    chosen = draw(st.lists(st.sampled_from(options_of(command)), min_size=1, max_size=2, unique_by=lambda p: p.name))
    flags = [parameter.opts[0] for parameter in chosen if getattr(parameter, "is_flag", False)]
    values = {p.opts[0]: draw(ANYTHING) for p in chosen if p.opts[0] not in flags and p.param_type_name == "option"}
    return command, values, flags


@pytest.fixture(scope="module")
def places(tmp_path_factory, clip_path, colours):
    """What a plain call of each command takes, by option; a folder to write to is added."""
    folder = tmp_path_factory.mktemp("any")
    data = {"--data": colours, "--label-column": "colour"}
    quick = {"--shots": 2, "--epochs": 1, "--batch-size": 8}
    one = {"--rates": "0.5", "--seeds": "1"}
    torch.save({"ctx": torch.zeros(4, 32)}, folder / ARGUMENTS["convert"])
    torch.save(published(build("resnet")), folder / ARGUMENTS["convert-clip"])
    save_cells(folder / ARGUMENTS["report"], base_to_novel()[:3])
    plain = {
        "train": data | quick | {"--model": clip_path, "--method": "coop"},
        "sweep": data | quick | one | {"--model": clip_path, "--method": "linear", "--weight-decays": "0"},
        "bench": data | {"--model": clip_path, "--methods": "coop", "--seeds": "1", "--shots": 2, "--max-steps": 1},
        "report": {},
        "noise-study": data | quick | one | {"--model": clip_path, "--methods": "coop", "--losses": "ce"},
        "pseudo-label": data | {"--model": clip_path},
        "features": data | {"--model": clip_path},
        "inspect": {},
        "evaluate": data | {"--adapter": folder / "adapter", "--model": clip_path},
        "predict": {"--data": colours, "--adapter": folder / "adapter", "--model": clip_path},
        "export": {"--adapter": folder / "adapter", "--model": clip_path, "--format": "plain"},
        "cost": {"--model": clip_path, "--method": "maple", "--classes": 2, "--shots": 1, "--seconds": 0},
        "demo": {"--methods": "coop", "--shots": 1},
        "convert": {"--method": "coop"},
        "convert-clip": {},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        run("train", plain["train"] | {"--output": folder / "adapter"}, [], folder)
        yield folder, plain


def run(command, values, flags, folder):
    arguments = [text for name, value in values.items() for text in (name, str(value))]
    arguments += [str(folder / ARGUMENTS[command])] if command in ARGUMENTS else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(app, [command, *arguments, *flags], env={"COLUMNS": "200"})


def check_call(call, places, monkeypatch):
    command, values, flags = call
    folder, plain = places
    monkeypatch.chdir(folder)
    name = f"{command}.csv" if command == "predict" else command
    output = {} if command in ("evaluate", "inspect", "report") else {"--output": folder / "out" / name}
    result = run(command, plain[command] | output | values, flags, folder)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)[:1000]
    assert result.exit_code in (0, 1, 2) and "Traceback" not in result.output
    if result.exit_code == 2 and "Usage:" not in result.output:
        (said,) = [line for line in result.output.strip().splitlines() if not line.startswith("Warning:")]
        assert said.startswith("Error: ") and len(said) < 12_000
    assert {path.name for path in Path(folder).iterdir()} <= {"out", *ARGUMENTS.values()}


@pytest.mark.usefixtures("embedded")
class TestCommands:
    @pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"app", "methods", "inspect", "push", "report"}))
    def test_a_place_that_cannot_be_written_is_one_line(self, command, places, monkeypatch, tmp_path):
        folder, plain = places
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file").write_text("kept")
        for option in ("--output", *(["--diagnose"] if command == "evaluate" else [])):
            place = tmp_path / "file" / ("out.csv" if command == "predict" else "out")
            result = run(command, plain[command] | {option: place}, [], folder)
            said = result.output.strip().splitlines()[-1]
            assert result.exit_code == 2 and said.startswith("Error: Cannot write '") and "file stands where" in said
        assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "kept"

    @pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"app", "methods", "push", "report"}))
    def test_an_empty_path_is_not_the_current_folder(self, command, places, monkeypatch, tmp_path):
        folder, plain = places
        monkeypatch.chdir(tmp_path)
        result = run(command, plain[command] | {"--output": ""}, [], folder)
        assert result.exit_code == 2 and "Expected a path. Received none" in result.output
        assert not any(tmp_path.iterdir())

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @given(call=calls())
    def test_any_option_is_taken_or_refused_in_one_line(self, call, places, monkeypatch):
        check_call(call, places, monkeypatch)

    @pytest.mark.nightly
    @settings(max_examples=2000, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck))
    @given(call=calls())
    def test_any_option_is_taken_or_refused_in_one_line_at_length(self, call, places, monkeypatch):
        check_call(call, places, monkeypatch)
