"""`vprompt app`."""

from typing import Annotated

from rich.markup import escape

from .app import command, console, say_named_by
from .options import Machine, option, takes_machine


@command(name="app")
@takes_machine
def page(
    machine: Machine,
    adapter: Annotated[
        list[str] | None, option("Folder or Hub id (id@revision) of a trained adapter. May be given several times.")
    ] = None,
    model: Annotated[
        str | None, option("Base model of all adapters; default: the one that each names, or the embedded one.")
    ] = None,
    port: Annotated[int | None, option("Port of this machine; default: the first free one from 7860 on.")] = None,
    share: Annotated[bool, option("Also make a public address, by way of Gradio's servers.")] = False,
):
    """Try adapters in a browser: drop an image, change the class names, and see what each says beside zero-shot.

    Needs Gradio (`pip install 'gradio>=6.31,<7'`). The page works without a network and tells nobody anything; only `--share`
    goes out.

    **Examples**

    - `vprompt app`
    - `vprompt app --adapter runs/coop --adapter runs/maple`
    - `vprompt app --adapter me/flowers --model path/to/clip --port 8000`
    """
    from peft_vprompt.app.page import load_gradio, serve
    from peft_vprompt.app.playground import Playground
    from peft_vprompt.utils.validation import require_int

    load_gradio()
    if port is not None:
        require_int("--port", port, 1, 65535)
    for each in adapter or ():
        say_named_by(each, model)
    playground = Playground(adapter or [], model, machine.device, machine.precision)
    compared = escape(", ".join(playground.names))
    serve(
        playground,
        port,
        share,
        opened=lambda address: console.print(f"{address} compares {compared}. Ctrl-C ends it."),
    )
