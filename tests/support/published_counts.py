"""Trained parameters on ViT-B/16 with 100 classes, by method and its options, as computed from the papers."""

COUNTS = {
    ("full", ()): 85_875_556,
    ("linear", ()): 76_900,
    ("mlp-3", ()): 1_261_156,
    ("partial-1", ()): 7_166_308,
    ("partial-2", ()): 14_254_180,
    ("partial-4", ()): 28_429_924,
    ("bias", ()): 179_812,
    ("adapter", (("reduction_factor", 8),)): 1_856_740,
    ("adapter", (("reduction_factor", 64),)): 307_444,
    ("adapter", (("reduction_factor", 128),)): 196_780,
    ("adapter", (("reduction_factor", 256),)): 141_448,
    ("vpt-shallow", ()): 84_580,
    ("vpt-shallow", (("num_virtual_tokens", 50),)): 115_300,
    ("vpt-deep", ()): 169_060,
    ("vpt-deep", (("num_virtual_tokens", 50),)): 537_700,
}
