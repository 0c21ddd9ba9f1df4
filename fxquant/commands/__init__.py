"""The commands of the command line, one a file: each adds its arguments, runs, and returns the text to print."""
