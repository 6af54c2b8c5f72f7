"""What every part uses: errors, files, JSON and the start of a program."""
