"""The tests. Nothing reaches the network; the environment is set here, before anything that reads it is imported."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and a console keeps the width it finds when it is made
