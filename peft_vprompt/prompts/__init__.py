"""Prompt modules: what is learned on a tower.

`tokens` free vectors, `coupling` visual prompts made of text prompts, `meta_net` contexts that an image shifts, `visual`
VPT's prompts, `pixels` prompts that are part of the image.
"""
