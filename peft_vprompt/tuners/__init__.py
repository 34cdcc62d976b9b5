"""One folder per method: its config, and a short model that puts the pieces together."""
