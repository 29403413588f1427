"""evenkeel inside other people's frameworks, one file each; import the one you need."""
