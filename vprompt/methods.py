"""`vprompt methods`."""

from rich.table import Table
from rich.text import Text

from .app import app, console, say_next
from .choices import METHODS


@app.command()
def methods():
    """List the methods that can be trained: what learns, whether it moves to new classes, and the paper.

    **Examples**

    - `vprompt methods`
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    table.add_column("--method", no_wrap=True, style="bold")
    table.add_column("New classes", no_wrap=True)
    table.add_column("Title: what learns, paper")
    for name, method in METHODS.items():
        description = Text(f"{method['title']}: {method['learns']}\n")
        description.append(method["paper"], style="dim")
        table.add_row(name, "yes" if method["new_classes"] else "no", description)
    console.print(table)
    console.print("New classes: what is learned on some classes can be used on others.", soft_wrap=True)
    say_next("train", "--method", "maple", "--output", "runs/maple")
