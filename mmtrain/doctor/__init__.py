"""`mmtrain doctor`: this machine and what it talks to, each line ok or its remedy."""
