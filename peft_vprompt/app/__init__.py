"""A page to try adapters in a browser: `Playground` is what it can do, `page` what it looks like (extra `[app]`)."""

from .playground import Answer, Playground


__all__ = ["Answer", "Playground"]
