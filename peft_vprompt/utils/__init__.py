"""What every floor uses: checks of values, files that are never half-written, digests, devices, the machine, plots."""
