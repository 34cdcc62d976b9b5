"""Write docs/commands.md, the reference of the command line, from its help texts: `python docs/render/commands.py`.

`--check` only compares. Options that several commands share are explained once.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import typer
from typer.main import get_command

from peft_vprompt.utils.io import atomic_path
from vprompt import app


PAGE = ROOT / "docs" / "commands.md"

#: In so many commands an option has to be for a place among the shared ones.
MANY = 3

TEXT = """<!-- Written by docs/render/commands.py from the help texts of vprompt: change those. -->
# Commands

What `vprompt COMMAND --help` says. `vprompt` and `python -m peft_vprompt` are the same.

{general}
{commands}
## Shared options

{shared}
"""


def records(command, context) -> dict[str, str]:
    """Return the line of each argument and option of a command by what is typed."""
    lines = {}
    for parameter in command.params:
        if (record := parameter.get_help_record(context)) is not None:
            name, about = record
            lines[parameter.opts[0]] = f"* `{name}`: {about}"
    return lines


def render() -> str:
    """Return the page as Markdown."""
    whole = get_command(app)
    top = typer.Context(whole, info_name="vprompt")
    found = {
        name: (command, records(command, typer.Context(command, info_name=name, parent=top)))
        for name, command in sorted(whole.commands.items())
    }
    count = Counter(entry for _, lines in found.values() for entry in lines.items())
    shared = {
        option: line for (option, line), times in reversed(count.most_common()) if times >= MANY
    }  # the commonest
    sections = []
    for name, (command, lines) in found.items():
        own = [line for option, line in lines.items() if shared.get(option) != line]
        if others := [f"`{option}`" for option in lines if shared.get(option) == lines[option]]:
            own.append(f"* [Shared](#shared-options): {', '.join(others)}.")
        sections += [f"## vprompt {name}", "", command.help, "", *own, ""]
    return TEXT.format(
        general="\n".join([*records(whole, top).values(), ""]),
        commands="\n".join(sections),
        shared="\n".join(sorted(shared.values())),
    )


def main() -> None:
    """Write the page, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="Only compare.")
    text = render()
    if parser.parse_args().check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit(f"{PAGE.name} is not what the help texts say: run `python docs/render/commands.py`.")
        return
    with atomic_path(PAGE) as partial:
        partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
