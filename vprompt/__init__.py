"""`vprompt`: the demo, training and evaluation on the command line. One file per command; `app` and `options` are shared.

The command stands beside `peft_vprompt`, not in it, and no file here imports the package, torch or transformers before a
command runs: a help text appears at once. What help texts say about the package is in `choices`. Only options and
messages live here; the work is done in `peft_vprompt`. A new command is a new file, imported here.
"""

# ruff: noqa: F401

from . import (
    bench,
    convert,
    convert_clip,
    cost,
    demo,
    evaluate,
    export,
    features,
    inspect,
    methods,
    noise_study,
    page,
    predict,
    pseudo_label,
    push,
    report,
    sweep,
    train,
)
from .app import app
