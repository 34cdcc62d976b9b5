"""The page of `vprompt app` as a Space on the Hugging Face Hub: adapters in `ADAPTERS`, their base model in `MODEL`.

Both are variables of the Space (Settings, Variables): `ADAPTERS` has ids or folders separated by blanks, `MODEL` may be left
out. Without any, the embedded tiny CLIP is shown. Runs on your machine, too: `python app.py`.
"""

import os

from peft_vprompt.app import Playground
from peft_vprompt.app.page import serve


if __name__ == "__main__":
    serve(Playground(os.environ.get("ADAPTERS", "").split(), os.environ.get("MODEL") or None))
