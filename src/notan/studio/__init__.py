"""The studio: look at what a model says of images, correct it with a brush, keep what is right."""
