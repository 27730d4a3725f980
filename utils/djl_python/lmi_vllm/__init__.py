"""Takes the place of the handlers that the image brings for artifacts without code."""
