"""From recorded runs to the tables and curves of the paper."""
