"""Writers of the test data in ``tests/annotations``, one for each format."""
