"""From features of images and classes to logits."""
