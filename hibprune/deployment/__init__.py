"""What is handed over: ONNX export, agreement with PyTorch, prediction."""
