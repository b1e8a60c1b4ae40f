"""Where utterances come from: one class per kind of source, listed in `DataSource`."""
