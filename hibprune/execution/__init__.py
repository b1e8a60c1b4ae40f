"""What a run stands on: steps that resume, files, progress, processes, memory, the machine."""
