# For those who type make: each target is a command of ./dev.
demo lint test test-nightly test-oldest:
	@./dev $@

.PHONY: demo lint test test-nightly test-oldest
