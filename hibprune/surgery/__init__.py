"""Physical removal of heads through Hugging Face's `prune_heads`."""
