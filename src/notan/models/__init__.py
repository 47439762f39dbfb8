"""Networks, written here and trained from scratch by default; pictures in, logits out."""
