"""Figures: each module draws one, from plain data onto the axes that it is given."""
