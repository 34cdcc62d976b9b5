"""The command line, called in this process."""

import shlex

from typer.testing import CliRunner

from vprompt import app


QUICK = ("--shots", 4, "--epochs", 2, "--batch-size", 4)


def vprompt(*arguments, code=0):
    """Run the command; give the result and all it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


def train(output, model, data, *more, code=0):
    options = ("--output", output, "--model", model, "--data", data, "--label-column", "colour")
    return vprompt("train", *options, *more, code=code)


def next_command(shown: str) -> list[str]:
    """The command that a command says comes next."""
    line = next(line for line in shown.splitlines() if line.startswith("Next: "))
    name, *arguments = shlex.split(line.removeprefix("Next: "))
    assert name == "vprompt"
    return arguments
