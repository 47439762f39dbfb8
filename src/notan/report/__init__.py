"""Pages for people: each is one HTML file that needs nothing else."""

import logging

# that its cache of fonts has no place in a read-only home is nothing to the user
logging.getLogger("matplotlib").setLevel(logging.ERROR)
