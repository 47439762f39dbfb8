"""Past one process: a prediction in blocks, and Ray, which hands them to machines."""
