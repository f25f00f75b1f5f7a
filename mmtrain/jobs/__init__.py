"""A command of this command line as a job of a Ray cluster."""
