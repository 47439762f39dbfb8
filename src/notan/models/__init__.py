"""Networks, written here and trained from scratch by default; images in, logits out."""
