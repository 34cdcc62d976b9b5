"""Prompt modules: what is learned on a tower."""
