"""Training by a recipe with the stock Trainer, its callbacks, evaluation, cached image features."""
