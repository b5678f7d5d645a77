"""The page that shows what compression did to a model: one HTML file that needs nothing else."""
