"""`python -m hibprune.cli`: the command line where its script is not on the path."""

from hibprune.cli import main

main()
