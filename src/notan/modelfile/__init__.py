"""What travels in a model file: preprocessing, postprocessing, the card, the two containers."""
