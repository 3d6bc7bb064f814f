"""A stage of a checkpoint as an ONNX graph."""
