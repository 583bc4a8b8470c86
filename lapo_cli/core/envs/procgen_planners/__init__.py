"""Planners: experts that read the state of the game itself, where a network would read its frames."""
