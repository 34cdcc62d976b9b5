"""From a method's name to a run: models, supervision, pseudo-labels, sweeps, studies, reports."""
