"""The exact, fast computation: layer loop, token insertion, attention patterns, class prompts. Knows no PEFT and no model by name."""
