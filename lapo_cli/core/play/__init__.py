"""Acting in the learned world model by hand."""
