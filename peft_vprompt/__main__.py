"""`python -m peft_vprompt` is `vprompt`."""

from vprompt import app


if __name__ == "__main__":
    app()
