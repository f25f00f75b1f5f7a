"""`python -m mmtrain` is `mmtrain`."""

from mmtrain.cli import main

main()
