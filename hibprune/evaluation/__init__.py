"""What a model is worth: its metric, its speed, its size."""
