"""Graphs in lower precision, int8 and fp16, made from exported float32 ones."""
