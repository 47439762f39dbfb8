"""Images and masks: reading, splitting, varying and batching them."""
