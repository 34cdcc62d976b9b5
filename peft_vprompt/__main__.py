"""`python -m peft_vprompt` is `vprompt`."""

from .cli import app


if __name__ == "__main__":
    app()
