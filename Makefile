# For those who type make: each target is a command of ./dev.
targets = demo lint test test-nightly test-quantised test-oldest test-versions coverage docs release-check

$(targets):
	@./dev $@

.PHONY: $(targets)
