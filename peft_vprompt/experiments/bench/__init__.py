"""A bench: methods by a protocol of the field on several tasks, in cells that any number of processes run, and its report."""
