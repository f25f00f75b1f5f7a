"""This process and what is around it: signals, deadlines, files of lines, how a run may end."""
