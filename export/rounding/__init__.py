"""What quantization costs, measured in PyTorch before or beside a build."""
