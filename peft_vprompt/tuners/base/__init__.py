"""All that touches PEFT: the tuner, its layers, the classifier over class names, the method table."""
