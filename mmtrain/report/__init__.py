"""The page and the figures that a person looks at."""
