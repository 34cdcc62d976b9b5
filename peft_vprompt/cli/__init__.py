"""`vprompt`: the demo, training and evaluation on the command line. One file per command; `app` and `options` are shared.

Only options and messages live here; the work is done in `experiment`, `build`, `data` and `evaluation`. A new command
is a new file, imported here.
"""

from . import convert, demo, evaluate, noise_study, pseudo_label, sweep, train
from .app import app


__all__ = ["app", "convert", "demo", "evaluate", "noise_study", "pseudo_label", "sweep", "train"]
