"""What every floor uses: checks of values, files that are never half-written, the machine, plots."""
