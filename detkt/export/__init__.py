"""Trained networks as files for other runtimes, run, scored and described as they will be used."""
