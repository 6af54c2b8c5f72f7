"""From raw data sets to prepared cases: one module per source, one shared pipeline."""
