"""What becomes of a trained adapter: predictions, plain classifiers, ONNX."""
