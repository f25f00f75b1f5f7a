"""Commands of the command line, a file a group; `mmtrain.cli` puts them together."""
