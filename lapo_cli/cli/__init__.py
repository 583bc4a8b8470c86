"""The command line: a table of subcommands, their options, and how progress, results and errors look."""
