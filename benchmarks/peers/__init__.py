"""One file for each engine that is measured, and how they are asked."""
