"""How the shipped lab model was made: its corpus, its training, its examination."""
