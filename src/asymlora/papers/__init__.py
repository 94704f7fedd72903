"""One module for each figure or table of the papers: what is run, at both scales, and the claims with their tests."""
