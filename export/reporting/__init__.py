"""What the reports share: the page, its look, plots and tables."""
