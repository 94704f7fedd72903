"""Running what a paper claims, and judging it: artefacts are in `asymlora.papers`, verdicts come from records alone."""
