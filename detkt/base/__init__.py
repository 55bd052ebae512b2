"""The ground floor: errors, files, settings, seeds, processes, devices. It imports nothing of the floors above."""
