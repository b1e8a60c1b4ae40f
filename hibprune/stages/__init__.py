"""The stages of a run, from the model as loaded to the directory as written."""
