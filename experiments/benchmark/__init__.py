"""Everything this project does, timed beside what one would use instead; `make benchmark`."""
